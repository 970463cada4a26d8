//! What Airflow is told, by its own environment variables. The same with and without a mesh.

use std::path::Path;

use super::Release;

/// How tasks are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Executor {
    /// By a worker that takes them from Redis.
    Celery,
    /// By the scheduler's own children.
    Local,
}

pub(super) const DATABASE_PASSWORD: &str = "pg-wind-0117";
pub(super) const REDIS_PASSWORD: &str = "redis-wind-0118";
pub(super) const JWT_SECRET: &str =
    "jwt-wind-0119-jwt-wind-0119-jwt-wind-0119-jwt-wind-0119-jwt-wind-0119";
const API_SECRET: &str = "api-wind-0120";

/// The password of the connection that tasks use.
pub(super) const CONNECTION_PASSWORD: &str = "conn-wind-0121";

/// What nobody must read on the wire: passwords, the beginning of every JWT, what Airflow's protocols look like.
pub const SECRETS: [&str; 9] = [
    DATABASE_PASSWORD,
    REDIS_PASSWORD,
    CONNECTION_PASSWORD,
    "eyJhbGciOi",
    "Bearer ",
    "HELLO\r\n$1\r\n3",
    "/execution/",
    "task_instance",
    "HTTP/1.1",
];

/// The user of the REST API, and his password.
pub(super) const USER: (&str, &str) = ("ada", "user-wind-0122");

/// The file of users' passwords, as the simple auth manager reads it.
pub(super) fn passwords() -> String {
    let (user, password) = USER;
    serde_json::json!({ user: password }).to_string()
}

/// Names and ports where Airflow finds what it uses.
pub(super) const API_SERVER: &str = "airflow-api-server";
pub(super) const API_PORT: u16 = 8080;

/// The environment of one component; `home` is its own, `shared` is what all of them see.
pub(super) fn environment(
    release: Release,
    executor: Executor,
    home: &Path,
    shared: &Path,
) -> Vec<(String, String)> {
    let database =
        format!("postgresql+psycopg2://airflow:{DATABASE_PASSWORD}@postgres.airflow:5432/airflow");
    let broker = format!("redis://:{REDIS_PASSWORD}@redis.airflow:6379/0");
    let path = |directory: &Path, name: &str| directory.join(name).display().to_string();
    let text = |text: &str| text.to_owned();
    let mut all = vec![
        ("HOME", home.display().to_string()),
        ("AIRFLOW_HOME", home.display().to_string()),
        ("PYTHONUNBUFFERED", text("1")),
        ("PYTHONDONTWRITEBYTECODE", text("1")),
        ("AIRFLOW__CORE__DAGS_FOLDER", path(shared, "dags")),
        ("AIRFLOW__CORE__LOAD_EXAMPLES", text("False")),
        ("AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION", text("False")),
        (
            "AIRFLOW__CORE__EXECUTOR",
            text(match executor {
                Executor::Celery => "CeleryExecutor",
                Executor::Local => "LocalExecutor",
            }),
        ),
        ("AIRFLOW__CORE__PARALLELISM", text("16")),
        (
            "AIRFLOW__CORE__FERNET_KEY",
            text("c2lkZXdpbmQtdGVzdHMtc2lkZXdpbmQtdGVzdHMtMDE="),
        ),
        ("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", database.clone()),
        ("AIRFLOW__LOGGING__BASE_LOG_FOLDER", path(home, "logs")),
        // Fewer of the looks that cost a small machine its time.
        ("AIRFLOW__TRIGGERER__DEFAULT_CAPACITY", text("100")),
    ];
    if executor == Executor::Celery {
        all.push(("AIRFLOW__CELERY__BROKER_URL", broker));
        all.push((
            "AIRFLOW__CELERY__RESULT_BACKEND",
            database.replace("postgresql+psycopg2", "db+postgresql"),
        ));
    }
    if release == Release::Three {
        all.extend([
            (
                "AIRFLOW__CORE__EXECUTION_API_SERVER_URL",
                format!("http://{API_SERVER}:{API_PORT}/execution/"),
            ),
            (
                "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS",
                format!("{}:admin", USER.0),
            ),
            (
                "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE",
                path(shared, "passwords.json"),
            ),
            ("AIRFLOW__API_AUTH__JWT_SECRET", text(JWT_SECRET)),
            ("AIRFLOW__API__SECRET_KEY", text(API_SECRET)),
            ("AIRFLOW__API__WORKERS", text("1")),
        ]);
    } else {
        all.push(("AIRFLOW__WEBSERVER__SECRET_KEY", text(API_SECRET)));
    }
    all.into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}
