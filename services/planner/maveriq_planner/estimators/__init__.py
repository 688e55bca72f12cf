"""The laws behind the planner's predictions, one interface: see `maveriq_planner.estimate.Estimator`."""
