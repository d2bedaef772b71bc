"""Recipes: YAML files of settings for a method, how they are read, and old programs' configs as recipes."""
