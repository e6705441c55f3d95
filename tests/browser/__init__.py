"""A package, so that its fixtures end with its last test and Playwright's event loop with them."""
