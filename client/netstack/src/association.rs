//! UDP associations: who talks to whom, and the datagrams that wait for their reader.

use std::{
    collections::{HashMap, VecDeque},
    task::Waker,
    time::Instant,
};

use bytes::Bytes;

use crate::{AssociationId, FlowKey, slab::Slab, timer::Armed};

/// All associations of the stack.
pub(crate) struct Associations {
    table: Slab<Association>,
    /// Only looked up, never iterated, so its order does not matter.
    by_key: HashMap<FlowKey, u32>,
    /// Bytes waiting in all of them.
    waiting_bytes: usize,
}

/// The datagrams of one 4-tuple.
pub(crate) struct Association {
    pub(crate) key: FlowKey,
    pub(crate) last_active: Instant,
    pub(crate) is_answered: bool,
    pub(crate) armed: Armed,
    waiting: VecDeque<Bytes>,
    waker: Option<Waker>,
}

/// Bounds of [`Associations::push`].
#[derive(Clone, Copy)]
pub(crate) struct QueueLimits {
    pub(crate) datagrams: usize,
    pub(crate) bytes: usize,
}

impl Associations {
    pub(crate) fn new() -> Self {
        Self { table: Slab::new(), by_key: HashMap::new(), waiting_bytes: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    pub(crate) fn find(&self, key: &FlowKey) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    pub(crate) fn open(&mut self, key: FlowKey, now: Instant) -> AssociationId {
        let (index, generation) = self.table.insert(Association {
            key,
            last_active: now,
            is_answered: false,
            armed: Armed::default(),
            waiting: VecDeque::new(),
            waker: None,
        });
        self.by_key.insert(key, index);
        AssociationId { index, generation }
    }

    pub(crate) fn get_mut(&mut self, id: AssociationId) -> Option<&mut Association> {
        self.table.get_mut(id.index, id.generation)
    }

    /// Queues a datagram for the reader; `false` when it does not fit.
    pub(crate) fn push(&mut self, index: u32, payload: &[u8], limits: QueueLimits, now: Instant) -> bool {
        let Some(association) = self.table.at_mut(index) else { return false };
        association.last_active = now;
        if association.waiting.len() >= limits.datagrams || self.waiting_bytes + payload.len() > limits.bytes {
            return false;
        }
        self.waiting_bytes += payload.len();
        association.waiting.push_back(Bytes::copy_from_slice(payload));
        if let Some(waker) = association.waker.take() {
            waker.wake();
        }
        true
    }

    /// Takes the oldest datagram; remembers the waker when there is none.
    pub(crate) fn pop(&mut self, id: AssociationId, waker: &Waker) -> Option<Option<Bytes>> {
        let association = self.table.get_mut(id.index, id.generation)?;
        let payload = association.waiting.pop_front();
        match &payload {
            Some(payload) => self.waiting_bytes -= payload.len(),
            None => association.waker = Some(waker.clone()),
        }
        Some(payload)
    }

    /// Ends an association and wakes its reader.
    pub(crate) fn remove(&mut self, id: AssociationId) -> Option<FlowKey> {
        self.table.get_mut(id.index, id.generation)?;
        self.remove_at(id.index)
    }

    pub(crate) fn remove_at(&mut self, index: u32) -> Option<FlowKey> {
        let association = self.table.remove(index)?;
        self.by_key.remove(&association.key);
        self.waiting_bytes -= association.waiting.iter().map(Bytes::len).sum::<usize>();
        if let Some(waker) = association.waker {
            waker.wake();
        }
        Some(association.key)
    }

    pub(crate) fn indexes(&self, select: impl Fn(&FlowKey) -> bool) -> Vec<u32> {
        self.table.indexes(|association| select(&association.key))
    }
}
