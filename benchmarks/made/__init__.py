"""The parts of the Markdown files that are made from results/: a module for each topic, each with its PARTS by name."""
