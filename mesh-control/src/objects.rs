//! What became of policy objects: what the source makes of each, and on how many proxies each is programmed. Whoever
//! writes status reads here; nothing here writes.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_api::crd::{Kind, ObjectRef};
use tokio::sync::watch;

use crate::compile::Resolver;
use crate::discovery::{Discovery, Programmed, ProxyStatus};
use crate::source::kube::{KubeSource, PolicyObject};

/// The state of all policy objects of a cluster, as far as this replica knows; cheap to clone.
#[derive(Clone)]
pub struct StatusView {
    objects: watch::Receiver<Arc<[PolicyObject]>>,
    discovery: Discovery,
    resolver: Arc<Resolver>,
}

impl StatusView {
    /// A view of what a source reads, a resolver compiles and discovery serves.
    #[must_use]
    pub fn new(source: &KubeSource, resolver: Arc<Resolver>, discovery: Discovery) -> Self {
        Self {
            objects: source.objects(),
            discovery,
            resolver,
        }
    }

    /// All policy objects in the order of their references, with what is wrong with each.
    #[must_use]
    pub fn objects(&self) -> Arc<[PolicyObject]> {
        self.objects.borrow().clone()
    }

    /// Waits until [`StatusView::objects`] is another list than when this was last called. `false` when it never will be.
    pub async fn changed(&mut self) -> bool {
        self.objects.changed().await.is_ok()
    }

    /// On how many of the proxies that are connected here each policy object is programmed. Objects that no proxy holds
    /// anything of are left out: 0 of 0.
    #[must_use]
    pub fn programmed(&self) -> BTreeMap<ObjectRef, Programmed> {
        let policy = |object: &mesh_api::names::ObjectRef| {
            Some(ObjectRef {
                kind: Kind::from_name(&object.kind)?,
                namespace: object.namespace.to_string(),
                name: object.name.to_string(),
            })
        };
        let applied = |object: &mesh_api::names::ObjectRef| {
            policy(object).map_or(0, |reference| self.resolver.applied(&reference))
        };
        let programmed = self.discovery.programmed(applied).into_iter();
        programmed
            .filter_map(|(object, count)| Some((policy(&object)?, count)))
            .collect()
    }

    /// The proxies that are connected here.
    #[must_use]
    pub fn proxies(&self) -> Vec<ProxyStatus> {
        self.discovery.status()
    }
}
