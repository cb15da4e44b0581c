"""From a recipe to artifacts: steps with keys, a store that holds whole results only, workers that may crash."""
