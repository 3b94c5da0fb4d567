"""From scenes to patches: cards of datasets, their regions, patches, databases' records."""
