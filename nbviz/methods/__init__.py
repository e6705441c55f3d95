"""One file per method: pure functions from a model and pictures to maps, torch in, torch out."""
