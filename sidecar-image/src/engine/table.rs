//! Which engagements a request or a connection belongs to (pure).

use std::sync::Arc;

use tp_protocol::engage::filter::Head;

use super::engagements::Engaged;
use super::index::FilterIndex;

/// The engagements of one port. Never changes: another set is another table.
#[derive(Default)]
pub(crate) struct Table {
    engaged: Vec<Arc<Engaged>>,
    index: FilterIndex,
}

/// Who gets a request or a connection.
#[derive(Clone, Default)]
pub(crate) struct Decision {
    /// Whose handler answers, instead of the app.
    pub(crate) taker: Option<Arc<Engaged>>,
    /// Who gets a copy.
    pub(crate) taps: Vec<Arc<Engaged>>,
}

impl Table {
    pub(crate) fn new(engaged: Vec<Arc<Engaged>>) -> Self {
        let index = FilterIndex::new(engaged.iter().map(|engaged| &engaged.spec.filter));
        Self { engaged, index }
    }

    /// Whether connections have to be looked into.
    pub(crate) fn has_filters(&self) -> bool {
        self.engaged.iter().any(|engaged| !engaged.spec.filter.is_empty())
    }

    /// Who gets a request. Of engagements that overlap, which the manager does not let happen, the first in the list.
    pub(crate) fn of_request(&self, head: Head<'_>) -> Decision {
        let found = self.index.find(head, |position| self.engaged[position].spec.filter.matches(head));
        Decision::of(found.into_iter().map(|position| &self.engaged[position]))
    }

    /// Who gets a connection that is no HTTP, or an association: filters do not match it.
    pub(crate) fn of_connection(&self) -> Decision {
        Decision::of(self.engaged.iter().filter(|engaged| engaged.spec.filter.is_empty()))
    }
}

impl Decision {
    fn of<'a>(matching: impl Iterator<Item = &'a Arc<Engaged>>) -> Self {
        let mut decision = Self::default();
        for engaged in matching {
            if !engaged.spec.kind.takes() {
                decision.taps.push(Arc::clone(engaged));
            } else if decision.taker.is_none() {
                decision.taker = Some(Arc::clone(engaged));
            }
        }
        decision
    }

    /// Whether it means the same engagements.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let taker = match (&self.taker, &other.taker) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        taker
            && self.taps.len() == other.taps.len()
            && self.taps.iter().zip(&other.taps).all(|(a, b)| Arc::ptr_eq(a, b))
    }
}
