"""Fine-tuning: the tasks, their data and metrics, and the job that runs them."""
