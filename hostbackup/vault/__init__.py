"""The backup itself: objects, manifests, snapshots, the browsable view, evidence, retention."""
