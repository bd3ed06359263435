"""The AWS protocols (SageMaker's API and its neighbours) on top of the local backend."""
