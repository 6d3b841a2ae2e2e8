"""The reporting room: records in, tables and figures out. It never imports torch."""
