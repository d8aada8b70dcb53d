"""Where data lives: web trees, mail accounts, local folders. Each offers the same four verbs, each over many entries."""
