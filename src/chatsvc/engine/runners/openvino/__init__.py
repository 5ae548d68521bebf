"""The runner for processors that the native one does not serve: OpenVINO GenAI."""
