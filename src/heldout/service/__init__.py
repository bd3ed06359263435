"""The AWS wire protocols in front of the local backend, so that clients written for AWS run here unchanged."""
