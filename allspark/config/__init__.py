"""The YAML file that describes a serialised model."""
