"""The process that lives for years, without numpy or engine."""
