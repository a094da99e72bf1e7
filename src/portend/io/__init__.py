"""Values to files and back: YAML forms, zip storage, CSV tables, journals of long work."""
