"""From scenes to patches: cards of datasets, their regions, the patches of a scene, records of
databases."""
