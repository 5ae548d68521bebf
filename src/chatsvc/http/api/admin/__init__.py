"""Administration, all of it with scope ``admin``. Every change is audited with the state before and after."""
