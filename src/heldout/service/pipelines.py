"""Pipelines of SageMaker and their versions."""

from heldout.service.operations import Room

ROOM = Room("sagemaker")
