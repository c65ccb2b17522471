//! The client's side of one resource type on one stream: which names still have to be subscribed or left, which response
//! waits for its acknowledgement, and which responses were made before the server had read a change.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use mesh_api::wire::ResourceType;
use mesh_api::wire::discovery::{DeltaDiscoveryRequest, Status};

/// `google.rpc.Code.INVALID_ARGUMENT`, of a NACK.
const INVALID_ARGUMENT: i32 = 3;

#[derive(Default)]
pub(super) struct Book {
    subscribe: BTreeSet<Arc<str>>,
    unsubscribe: BTreeSet<Arc<str>>,
    /// What is held at the start of a stream, and that the first request is still to be sent.
    first: Option<HashMap<String, String>>,
    /// Nonce to answer, and what was wrong with the response.
    answer: Option<(String, Option<String>)>,
    /// Requests sent.
    requests: u64,
    /// In which request a name last changed.
    changed_in: HashMap<Arc<str>, u64>,
}

impl Book {
    /// A new stream: everything wanted is subscribed in the first request.
    pub(super) fn restart(&mut self, names: impl Iterator<Item = Arc<str>>, held: HashMap<String, String>) {
        *self = Self {
            subscribe: names.collect(),
            first: Some(held),
            ..Self::default()
        };
    }

    /// No stream: nothing to tell until the next one.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn subscribe(&mut self, name: &Arc<str>) {
        self.unsubscribe.remove(name);
        self.subscribe.insert(name.clone());
    }

    pub(super) fn unsubscribe(&mut self, name: &Arc<str>) {
        self.subscribe.remove(name);
        self.unsubscribe.insert(name.clone());
    }

    /// A response has come and is answered by the next request; with an error, refused.
    pub(super) fn answer(&mut self, nonce: String, error: Option<String>) {
        self.answer = Some((nonce, error));
    }

    /// Forgets changes that the server had read when it made a response; of older ones [`Self::is_stale`] says so.
    pub(super) fn seen(&mut self, requests: u64) {
        // A server that does not count answers as if it knew everything.
        if requests == 0 {
            self.changed_in.clear();
        } else {
            self.changed_in.retain(|_, changed| *changed > requests);
        }
    }

    /// Whether what a response says of a name is older than what we said of it.
    pub(super) fn is_stale(&self, name: &str) -> bool {
        self.changed_in.contains_key(name) || self.subscribe.contains(name) || self.unsubscribe.contains(name)
    }

    pub(super) fn is_pending(&self) -> bool {
        self.first.is_some() || self.answer.is_some() || !self.subscribe.is_empty() || !self.unsubscribe.is_empty()
    }

    /// The next request, with everything that is pending.
    pub(super) fn request(&mut self, kind: ResourceType) -> DeltaDiscoveryRequest {
        self.requests += 1;
        let subscribe = std::mem::take(&mut self.subscribe);
        let unsubscribe = std::mem::take(&mut self.unsubscribe);
        for name in subscribe.iter().chain(&unsubscribe) {
            self.changed_in.insert(name.clone(), self.requests);
        }
        let (nonce, error) = self.answer.take().unwrap_or_default();
        let text = |names: BTreeSet<Arc<str>>| names.iter().map(|name| name.to_string()).collect();
        DeltaDiscoveryRequest {
            node: None,
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: text(subscribe),
            resource_names_unsubscribe: text(unsubscribe),
            initial_resource_versions: self.first.take().unwrap_or_default(),
            response_nonce: nonce,
            error_detail: error.map(|message| Status {
                code: INVALID_ARGUMENT,
                message,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_older_than_a_change_are_stale() {
        let mut book = Book::default();
        let name: Arc<str> = "a:80".into();
        book.restart(std::iter::empty(), HashMap::new());
        book.request(ResourceType::Destination);
        book.subscribe(&name);
        assert!(book.is_stale("a:80"), "not sent yet");
        book.request(ResourceType::Destination);
        book.seen(1);
        assert!(book.is_stale("a:80"), "sent, not read");
        book.seen(2);
        assert!(!book.is_stale("a:80"));
    }

    #[test]
    fn requests_carry_everything_pending_once() {
        let mut book = Book::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a:80".into(), "b:80".into());
        book.restart([a.clone()].into_iter(), HashMap::from([("a:80".into(), "v1".into())]));
        book.unsubscribe(&a);
        book.subscribe(&b);
        book.answer("7".into(), Some("bad".into()));
        let request = book.request(ResourceType::Destination);
        assert_eq!(request.resource_names_subscribe, ["b:80"]);
        assert_eq!(request.resource_names_unsubscribe, ["a:80"]);
        assert_eq!(request.initial_resource_versions["a:80"], "v1");
        assert_eq!(request.response_nonce, "7");
        assert_eq!(request.error_detail.unwrap().message, "bad");
        assert!(!book.is_pending());
    }
}
