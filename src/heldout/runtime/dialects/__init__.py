"""The protocols in which agents call the model. `base` defines a dialect, `table` lists them, and each one is a module."""
