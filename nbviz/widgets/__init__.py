"""Widgets: they hold the state, ask the steps before them for what changed, and send bytes to the page."""
