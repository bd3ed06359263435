"""An evaluation as a pipeline of managed jobs: Amazon SageMaker, or anything that speaks its protocols."""
