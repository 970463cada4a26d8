//! A real Airflow: what passes between its components, and whose it is.

mod away;
mod crowd;
mod faults;
mod local;
mod payroll;
mod refusals;
mod story;
