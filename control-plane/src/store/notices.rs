//! How replicas hear of each other's changes.
//!
//! Each topic has a number in the store. Who changes something of a topic raises it in the same transaction
//! ([`Store::announce`]); everyone else reads the numbers when PostgreSQL's NOTIFY says so, and every two
//! seconds whether it does or not, and passes on which topics are new ([`Store::watch`]).

use super::database::Kind;
use super::{Location, Store, StoreError};
use sqlx::postgres::{PgListener, PgPoolOptions};
use sqlx::{Any, Row as _, Transaction};
use std::time::Duration;
use tokio::sync::watch;

/// What changes in the store that other replicas are to hear of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Topic {
    /// Certificate authorities, their slots, the trust bundle and its sequence.
    Authorities,
    /// Keys that sign JWT-SVIDs.
    JwtKeys,
    /// Identities and certificates that are banned.
    Bans,
    /// Bundles of other trust domains.
    Federation,
    /// Services that belong to the mesh.
    Services,
    /// Workloads and the replicas that they are at.
    Workloads,
}

impl Topic {
    const ALL: [Self; 6] = [
        Self::Authorities,
        Self::JwtKeys,
        Self::Bans,
        Self::Federation,
        Self::Services,
        Self::Workloads,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Authorities => "authorities",
            Self::JwtKeys => "jwt-keys",
            Self::Bans => "bans",
            Self::Federation => "federation",
            Self::Services => "services",
            Self::Workloads => "workloads",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|topic| topic.as_str() == text)
    }
}

/// The channel of NOTIFY.
const CHANNEL: &str = "sidewind";
/// How often the numbers are read without a notification.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// How long a connection may take: the numbers are not read meanwhile.
const CONNECT_TIME: Duration = Duration::from_secs(2);
/// How long reading the numbers may take.
const POLL_TIME: Duration = Duration::from_secs(10);

/// The numbers as this process last saw them.
#[derive(Debug)]
pub(super) struct Notices([watch::Sender<i64>; Topic::ALL.len()]);

impl Default for Notices {
    fn default() -> Self {
        Self(std::array::from_fn(|_| watch::Sender::new(0)))
    }
}

impl Notices {
    fn of(&self, topic: Topic) -> Option<&watch::Sender<i64>> {
        self.0.get(topic as usize)
    }

    /// A number that is another than before is news, also when it is smaller: then an older copy of the
    /// database was restored.
    fn hear(&self, topic: Topic, number: i64) {
        if let Some(sender) = self.of(topic) {
            sender.send_if_modified(|known| std::mem::replace(known, number) != number);
        }
    }
}

impl Store {
    /// Tells every replica, this one too, that a topic changes with this transaction. Gives back the number
    /// of the change. Until the transaction ends no other can announce the same topic: call it once what
    /// takes long is done, and several topics always in the order of [`Topic`].
    ///
    /// # Errors
    /// When the store fails.
    pub async fn announce(
        &self,
        transaction: &mut Transaction<'_, Any>,
        topic: Topic,
    ) -> Result<i64, StoreError> {
        let number = sqlx::query_scalar(
            "INSERT INTO notices (topic, number) VALUES ($1, 1)
             ON CONFLICT (topic) DO UPDATE SET number = notices.number + 1 RETURNING number",
        )
        .bind(topic.as_str())
        .fetch_one(&mut **transaction)
        .await?;
        match self.kind {
            Kind::Postgres => {
                sqlx::query("SELECT pg_notify($1, $2)")
                    .bind(CHANNEL)
                    .bind(topic.as_str())
                    .execute(&mut **transaction)
                    .await?;
            }
            // There is one connection: who is woken by this waits for it until the transaction has ended.
            Kind::Sqlite => self.notices.hear(topic, number),
        }
        Ok(number)
    }

    /// Changes whenever a topic does.
    #[must_use]
    pub fn watch(&self, topic: Topic) -> watch::Receiver<i64> {
        match self.notices.of(topic) {
            Some(sender) => sender.subscribe(),
            None => watch::channel(0).1,
        }
    }

    /// Reads the numbers once.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn read_notices(&self) -> Result<(), StoreError> {
        let rows = sqlx::query("SELECT topic, number FROM notices")
            .fetch_all(&self.pool)
            .await?;
        for row in rows {
            // A newer replica may know topics that this one does not.
            if let Some(topic) = Topic::parse(row.try_get("topic")?) {
                self.notices.hear(topic, row.try_get("number")?);
            }
        }
        Ok(())
    }

    /// Hears of the changes of other replicas. Runs until dropped; on SQLite there is nothing to hear.
    pub async fn hear_notices(self) {
        let Location::Postgres(url) = &self.location else {
            return;
        };
        // A connection of its own: it is in use all the time.
        let Ok(options) = url.options() else {
            return;
        };
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(CONNECT_TIME)
            .connect_lazy_with(options);
        let mut listener = None;
        let mut interval = tokio::time::interval(POLL_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if listener.is_none() {
                match listen(&pool).await {
                    Ok(listening) => listener = Some(listening),
                    // Told at once, where the pool would go on trying for seconds.
                    Err(error) => self.health.fails(&error),
                }
            }
            tokio::select! {
                heard = notification(&mut listener) => if heard.is_err() { listener = None },
                _ = interval.tick() => {}
            }
            let read = tokio::time::timeout(POLL_TIME, self.read_notices()).await;
            self.health.note(read.unwrap_or(Err(StoreError::Slow)));
        }
    }
}

async fn listen(pool: &sqlx::PgPool) -> Result<PgListener, StoreError> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(CHANNEL).await?;
    Ok(listener)
}

/// The next notification, and whatever else has come by then. Without a connection it waits for ever, and
/// the numbers are read by the clock.
async fn notification(listener: &mut Option<PgListener>) -> Result<(), sqlx::Error> {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    listener.try_recv().await?.ok_or(sqlx::Error::PoolClosed)?;
    // Several notifications of one moment are read at once.
    while listener.next_buffered().is_some() {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::each_store;
    use super::*;

    #[tokio::test]
    async fn an_announced_topic_is_heard_once_it_is_committed() {
        for store in each_store().await {
            let mut heard = store.watch(Topic::Bans);
            let hearing = tokio::spawn(Store::clone(&store).hear_notices());
            let mut transaction = store.begin().await.unwrap();
            let number = store.announce(&mut transaction, Topic::Bans).await.unwrap();
            transaction.commit().await.unwrap();
            heard.wait_for(|heard| *heard == number).await.unwrap();
            assert_eq!(*store.watch(Topic::Authorities).borrow(), 0);
            hearing.abort();
        }
    }

    #[tokio::test]
    async fn what_is_rolled_back_is_not_in_the_numbers() {
        for store in each_store().await {
            let mut transaction = store.begin().await.unwrap();
            store.announce(&mut transaction, Topic::Bans).await.unwrap();
            transaction.rollback().await.unwrap();
            let mut transaction = store.begin().await.unwrap();
            let number = store.announce(&mut transaction, Topic::Bans).await.unwrap();
            assert_eq!(number, 1);
        }
    }
}
