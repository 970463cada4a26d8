//! Ports that are known by their number, and who speaks first there.

/// Who speaks first on a well-known port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    /// The server, or both: nothing may be waited for.
    Server,
    /// The client, in a protocol that is neither HTTP nor needs HTTP's care: its first bytes decide.
    Client,
}

/// What is known of a port by its number alone.
pub(super) const fn well_known(port: u16) -> Option<Speaks> {
    Some(match port {
        // FTP, SSH, Telnet, SMTP and its submission, POP3, NNTP, IMAP.
        21 | 22 | 23 | 25 | 110 | 119 | 143 | 587 | 2525 => Speaks::Server,
        // MySQL, NATS, VNC, ActiveMQ (OpenWire).
        3306 | 4222 | 5900 | 61616 => Speaks::Server,
        // PostgreSQL, PgBouncer (its own and the Airflow chart's), AMQP, Redis.
        5432 | 5672 | 6379 | 6432 | 6543 => Speaks::Client,
        // SQL Server, Oracle, MQTT, ZooKeeper, Cassandra, Kafka, memcached, MongoDB.
        1433 | 1521 | 1883 | 2181 | 9042 | 9092 | 11211 | 27017 => Speaks::Client,
        _ => return None,
    })
}
