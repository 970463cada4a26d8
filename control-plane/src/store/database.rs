//! Where the store is, and how its two databases are opened.

use super::{StateDir, StateDirError, StoreError, check_group_private};
use sqlx::any::{AnyConnectOptions, AnyPoolOptions, install_default_drivers};
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AnyConnection, AnyPool, ConnectOptions as _, Connection as _};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::time::Duration;

/// Which database it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Sqlite,
    Postgres,
}

/// Where the store is.
#[derive(Debug, Clone, Default)]
pub enum Location {
    /// SQLite in the state directory.
    #[default]
    StateDir,
    /// A PostgreSQL database.
    Postgres(PostgresUrl),
}

/// How a PostgreSQL database is reached. Its `Debug` shows neither password nor anything else of it.
#[derive(Clone)]
pub struct PostgresUrl(AnyConnectOptions);

/// Why a location cannot be used. Never repeats what was given: it may hold a password.
#[derive(Debug, thiserror::Error)]
pub enum LocationError {
    /// It is not a URL.
    #[error("this is not a URL like postgres://user@host:5432/database")]
    NotAUrl(#[source] sqlx::Error),
    /// It is a URL of something else.
    #[error("the store is a PostgreSQL database, postgres://user@host:5432/database, not {0:?}")]
    Scheme(String),
    /// A parameter is not one that is known.
    #[error("{0:?} is not a parameter of a PostgreSQL URL that is known here; there are {known}", known = PARAMETERS.join(", "))]
    Parameter(String),
    /// A parameter's value, or a file that it names, cannot be used.
    #[error("the URL of the store cannot be used")]
    Unusable(#[source] sqlx::Error),
    /// The file that holds it cannot be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file that holds it is open to others.
    #[error(transparent)]
    TooOpen(#[from] StateDirError),
}

/// Parameters of a PostgreSQL URL. Another would be passed over with a warning that shows its value.
const PARAMETERS: &[&str] = &[
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "password",
    "port",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "user",
];

/// Connections to PostgreSQL at most.
const CONNECTIONS: u32 = 10;
/// How long a connection may take to be had, new or used.
const ACQUIRE_TIME: Duration = Duration::from_secs(4);
/// How long a connection that was idle may take to show that it still works.
const PING_TIME: Duration = Duration::from_secs(2);
/// What a new connection to SQLite begins with. A used token must stay used through a power failure.
const SQLITE_SESSION: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
    PRAGMA foreign_keys = ON; PRAGMA busy_timeout = 5000;";
/// What a new connection to PostgreSQL begins with: no statement and no lock holds a call up for long, and
/// no transaction stays open when its replica has lost its mind.
const POSTGRES_SESSION: &str = "SET statement_timeout = '10s'; SET lock_timeout = '5s';
    SET idle_in_transaction_session_timeout = '15s'; SET synchronous_commit = on;
    SET default_transaction_isolation = 'read committed';";

impl Location {
    /// Reads a PostgreSQL URL. What it lacks comes from the variables of PostgreSQL's own clients (PGHOST,
    /// PGUSER, PGPASSWORD, PGSSLMODE and so on) and the password file.
    ///
    /// # Errors
    /// When it is none, without repeating it.
    pub fn parse(text: &str) -> Result<Self, LocationError> {
        let options = AnyConnectOptions::from_str(text.trim()).map_err(LocationError::NotAUrl)?;
        let url = &options.database_url;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(LocationError::Scheme(url.scheme().to_owned()));
        }
        for (name, _) in url.query_pairs() {
            if !PARAMETERS.contains(&name.as_ref()) {
                return Err(LocationError::Parameter(name.into_owned()));
            }
        }
        PgConnectOptions::from_url(url).map_err(LocationError::Unusable)?;
        Ok(Self::Postgres(PostgresUrl(options)))
    }

    /// Reads a file that holds a PostgreSQL URL, so that a password is on no command line.
    ///
    /// # Errors
    /// When it cannot be read, is open to others than its owner and group, or holds something else.
    pub fn read(path: &Path) -> Result<Self, LocationError> {
        check_group_private(path, "the URL of the store")?;
        let text = std::fs::read_to_string(path).map_err(|source| LocationError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text)
    }

    /// Whether the URL itself holds a password.
    #[must_use]
    pub fn has_password(&self) -> bool {
        let Self::Postgres(PostgresUrl(options)) = self else {
            return false;
        };
        let url = &options.database_url;
        url.password().is_some() || url.query_pairs().any(|(name, _)| name == "password")
    }
}

impl PostgresUrl {
    /// The options of a connection.
    pub(super) fn options(&self) -> Result<PgConnectOptions, sqlx::Error> {
        PgConnectOptions::from_url(&self.0.database_url)
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PostgresUrl").finish_non_exhaustive()
    }
}

impl fmt::Display for Location {
    /// Names the database without user and password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StateDir => f.write_str("SQLite in the state directory"),
            Self::Postgres(url) => match url.options() {
                Ok(options) => write!(
                    f,
                    "PostgreSQL at {}:{}/{}",
                    options.get_host(),
                    options.get_port(),
                    options.get_database().unwrap_or_default()
                ),
                Err(_) => f.write_str("PostgreSQL"),
            },
        }
    }
}

/// Opens a database and brings its schema up to date.
pub(super) async fn open(
    state: &StateDir,
    location: &Location,
) -> Result<(AnyPool, Kind), StoreError> {
    install_default_drivers();
    match location {
        Location::StateDir => {
            let pool = sqlite(&state.create_database()?).await?;
            sqlx::migrate!("./migrations/sqlite").run(&pool).await?;
            Ok((pool, Kind::Sqlite))
        }
        Location::Postgres(url) => {
            let pool = postgres(url).await?;
            sqlx::migrate!("./migrations/postgres").run(&pool).await?;
            Ok((pool, Kind::Postgres))
        }
    }
}

async fn sqlite(file: &Path) -> Result<AnyPool, sqlx::Error> {
    // A URL knows no relative path.
    let file = std::path::absolute(file)?;
    let url = SqliteConnectOptions::new().filename(file).to_url_lossy();
    // SQLite has one writer at a time: one connection queues fairly where several would collide.
    AnyPoolOptions::new()
        .max_connections(1)
        .min_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .acquire_timeout(ACQUIRE_TIME)
        .after_connect(|connection, _| Box::pin(prepare(connection, SQLITE_SESSION)))
        .test_before_acquire(false)
        // A file does not go away, and to ask after it would be one more wake-up of the driver's thread for each use.
        .before_acquire(|connection, _| Box::pin(std::future::ready(Ok(is_idle(connection)))))
        .connect_with(AnyConnectOptions::from_url(&url)?)
        .await
}

async fn postgres(url: &PostgresUrl) -> Result<AnyPool, sqlx::Error> {
    AnyPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(ACQUIRE_TIME)
        .after_connect(|connection, _| Box::pin(prepare(connection, POSTGRES_SESSION)))
        .test_before_acquire(false)
        .before_acquire(|connection, _| Box::pin(is_usable(connection)))
        .connect_with(url.0.clone())
        .await
}

/// The number of an advisory lock, by its name.
pub(super) fn lock_number(name: &str) -> i64 {
    let digest = aws_lc_rs::digest::digest(
        &aws_lc_rs::digest::SHA256,
        format!("sidewind {name}").as_bytes(),
    );
    let first = digest.as_ref().first_chunk().copied().unwrap_or_default();
    i64::from_be_bytes(first)
}

/// Whether a connection that was used before can be used again; one that cannot is closed: one whose server vanished
/// without a word would hold up everyone who is given it.
async fn is_usable(connection: &mut AnyConnection) -> Result<bool, sqlx::Error> {
    let answered = tokio::time::timeout(PING_TIME, connection.ping()).await;
    Ok(matches!(answered, Ok(Ok(()))) && is_idle(connection))
}

/// Whether no transaction is left on a connection. SQLite ends one by itself when the disk is full, which leaves the
/// driver counting one that it can never end.
fn is_idle(connection: &AnyConnection) -> bool {
    !connection.is_in_transaction()
}

async fn prepare(
    connection: &mut AnyConnection,
    statements: &'static str,
) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(statements).execute(connection).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_in_no_error_and_no_debug_form() {
        for text in [
            "postgres://me:canary@h/d",
            "postgres://me:canary@h/d?passwort=canary",
            "postgres://me:canary@h:99999/d",
            "postgres://me@h/d?password=canary",
            "postgres://me:canary@h/d?sslmode=canary-not",
            "mysql://me:canary@h/d",
            "me:canary@h/d",
            "canary",
        ] {
            let shown = match Location::parse(text) {
                Ok(location) => {
                    assert!(location.has_password());
                    format!("{location:?} {location}")
                }
                Err(error) => crate::telemetry::chain(&error),
            };
            // A value of sslmode is no secret.
            assert!(
                !shown.replace("canary-not", "").contains("canary"),
                "{text}: {shown}"
            );
        }
    }

    #[test]
    fn a_location_is_named_without_its_user() {
        let location = Location::parse("postgres://me@db.example:6432/mesh").unwrap();
        assert_eq!(location.to_string(), "PostgreSQL at db.example:6432/mesh");
        assert!(!location.has_password());
    }
}
