//! A real Airflow: what passes between its components, and whose it is.

mod crowd;
mod faults;
mod story;
