"""A copy's contents in packs: what lies in which, and at which place. Specified in `docs/vault-format.md`, section 10."""
