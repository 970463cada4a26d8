//! Which destinations are wanted by which streams, and what each depends on.

use super::resolve::{Answer, Query, View};
use super::{StreamId, Topic};
use sidewind_api::v1;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    wanted: HashMap<Query, Wanted>,
    by_topic: HashMap<Topic, HashSet<Query>>,
    by_stream: HashMap<StreamId, HashSet<Query>>,
}

#[derive(Debug)]
struct Wanted {
    service: Option<Arc<v1::Service>>,
    topics: HashSet<Topic>,
    subscribers: BTreeSet<StreamId>,
}

/// A destination whose answer is another than before.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) query: Query,
    pub(super) service: Option<Arc<v1::Service>>,
    pub(super) subscribers: Vec<StreamId>,
}

impl Subscriptions {
    /// Subscribes a stream and gives the answer. A destination that is wanted already is not resolved again.
    pub(super) fn add(
        &mut self,
        view: &View<'_>,
        query: &Query,
        stream: StreamId,
    ) -> Option<Arc<v1::Service>> {
        self.by_stream
            .entry(stream)
            .or_default()
            .insert(query.clone());
        if let Some(wanted) = self.wanted.get_mut(query) {
            wanted.subscribers.insert(stream);
            return wanted.service.clone();
        }
        let Answer { service, topics } = view.resolve(query);
        let service = service.map(Arc::new);
        link(&mut self.by_topic, &topics, query);
        let wanted = Wanted {
            service: service.clone(),
            topics,
            subscribers: BTreeSet::from([stream]),
        };
        self.wanted.insert(query.clone(), wanted);
        service
    }

    /// Ends one subscription.
    pub(super) fn remove(&mut self, query: &Query, stream: StreamId) {
        if let Some(queries) = self.by_stream.get_mut(&stream) {
            queries.remove(query);
        }
        self.drop_subscriber(query, stream);
    }

    /// Ends every subscription of a stream.
    pub(super) fn remove_stream(&mut self, stream: StreamId) {
        for query in self.by_stream.remove(&stream).into_iter().flatten() {
            self.drop_subscriber(&query, stream);
        }
    }

    fn drop_subscriber(&mut self, query: &Query, stream: StreamId) {
        let Some(wanted) = self.wanted.get_mut(query) else {
            return;
        };
        wanted.subscribers.remove(&stream);
        if wanted.subscribers.is_empty()
            && let Some(wanted) = self.wanted.remove(query)
        {
            unlink(&mut self.by_topic, &wanted.topics, query);
        }
    }

    /// Resolves what depends on some topics again.
    pub(super) fn resolve_topics(
        &mut self,
        view: &View<'_>,
        topics: &HashSet<Topic>,
    ) -> Vec<Change> {
        let queries = topics.iter().filter_map(|topic| self.by_topic.get(topic));
        let queries: HashSet<Query> = queries.flatten().cloned().collect();
        self.resolve_each(view, queries)
    }

    /// Resolves everything again.
    pub(super) fn resolve_all(&mut self, view: &View<'_>) -> Vec<Change> {
        let queries: Vec<Query> = self.wanted.keys().cloned().collect();
        self.resolve_each(view, queries)
    }

    fn resolve_each(
        &mut self,
        view: &View<'_>,
        queries: impl IntoIterator<Item = Query>,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        for query in queries {
            let Some(wanted) = self.wanted.get_mut(&query) else {
                continue;
            };
            let Answer { service, topics } = view.resolve(&query);
            if topics != wanted.topics {
                unlink(&mut self.by_topic, &wanted.topics, &query);
                link(&mut self.by_topic, &topics, &query);
                wanted.topics = topics;
            }
            if service.as_ref() == wanted.service.as_deref() {
                continue;
            }
            wanted.service = service.map(Arc::new);
            changes.push(Change {
                service: wanted.service.clone(),
                subscribers: wanted.subscribers.iter().copied().collect(),
                query,
            });
        }
        changes
    }

    /// Number of destinations that are wanted.
    pub(super) fn len(&self) -> usize {
        self.wanted.len()
    }
}

fn link(index: &mut HashMap<Topic, HashSet<Query>>, topics: &HashSet<Topic>, query: &Query) {
    for topic in topics {
        index
            .entry(topic.clone())
            .or_default()
            .insert(query.clone());
    }
}

fn unlink(index: &mut HashMap<Topic, HashSet<Query>>, topics: &HashSet<Topic>, query: &Query) {
    for topic in topics {
        if let Some(queries) = index.get_mut(topic) {
            queries.remove(query);
            if queries.is_empty() {
                index.remove(topic);
            }
        }
    }
}
