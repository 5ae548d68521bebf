"""Administration, all of it with scope ``admin``. Every act is audited with what was there before and after."""
