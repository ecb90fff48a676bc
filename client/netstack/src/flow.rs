//! One TCP flow, from its SYN to its last packet.

use std::{
    collections::{BTreeSet, HashMap},
    task::Waker,
    time::Instant,
};

use smoltcp::socket::tcp::State;

use crate::{
    FlowError, FlowKey,
    rings::{RingSocket, Rings},
    segment::{HeldSyn, Segment},
    slab::Slab,
    timer::Armed,
};

/// All flows of the stack.
pub(crate) struct Flows {
    pub(crate) table: Slab<Flow>,
    /// Only looked up, never iterated, so its order does not matter.
    pub(crate) by_key: HashMap<FlowKey, Known>,
    pub(crate) rings: Rings,
    /// When the SYNs that wait for an answer came, and the indexes of their flows.
    pub(crate) held: BTreeSet<(Instant, u32)>,
    pub(crate) open: usize,
    pub(crate) time_waits: usize,
}

/// What a 4-tuple stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Known {
    /// The index of a flow.
    Flow(u32),
    /// A connection that is over.
    TimeWait(TimeWait),
}

/// What is needed to acknowledge a FIN once more: sequence numbers of both sides behind everything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimeWait {
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) expires: Instant,
}

/// A flow whose id has not been given back, or that still has something to do on the wire.
pub(crate) struct Flow {
    pub(crate) key: FlowKey,
    pub(crate) generation: u32,
    /// When the SYN came.
    pub(crate) since: Instant,
    pub(crate) state: FlowState,
    pub(crate) ending: Ending,
    /// Waits in the queue for egress.
    pub(crate) is_dirty: bool,
    /// Ended by the container, or by a failure that looks so to the owner.
    pub(crate) is_reset: bool,
    pub(crate) reset_waker: Option<Waker>,
    pub(crate) armed: Armed,
}

pub(crate) enum FlowState {
    /// The SYN waits for the driver's answer.
    Held(HeldSyn),
    /// There is a connection, or was one: then received bytes may be left.
    Open(Stream),
    /// The container gave up before it was answered, or was given up for others.
    GivenUp,
}

/// Who decides how the flow ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The id is in use.
    Owned,
    /// The id was given back: FIN behind the queued bytes.
    InOrder,
    /// The id was given back: RST behind the queued bytes.
    ResetBehindData,
    /// The id was given back, and a RST ordered.
    Reset,
}

/// A connection and its rings.
pub(crate) struct Stream {
    pub(crate) ring: RingSocket,
    /// The largest segment that the container takes.
    pub(crate) mss: u16,
    /// The container's first sequence number.
    pub(crate) first_seq: u32,
    pub(crate) sent: Sent,
    /// A FIN is wanted behind the queued bytes. It cannot be given to smoltcp during the handshake, where it would take
    /// the ACK of the SYN for one of the FIN.
    pub(crate) is_fin_wanted: bool,
    /// No packet of the 4-tuple belongs to this stream any more; smoltcp is not asked again. (At the end of TIME-WAIT it
    /// would drop bytes that have not been read.)
    pub(crate) is_detached: bool,
    /// When to give up on the handshake, or on the container's FIN.
    pub(crate) give_up: Option<Instant>,
}

/// What the last packet to the container said.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sent {
    /// The sequence number behind it.
    pub(crate) seq_end: u32,
    pub(crate) ack: u32,
    pub(crate) is_syn: bool,
}

impl Flows {
    pub(crate) fn new(rings: Rings) -> Self {
        Self { table: Slab::new(), by_key: HashMap::new(), rings, held: BTreeSet::new(), open: 0, time_waits: 0 }
    }

    /// Flows that the container gave up, or that were given up for it, and whose owner has not given the id back.
    pub(crate) fn given_up(&self) -> usize {
        self.table.len() - self.open - self.held.len()
    }

    /// Lets go of the 4-tuple if it still stands for the flow at `index`.
    pub(crate) fn forget_key(&mut self, key: &FlowKey, index: u32) {
        if matches!(self.by_key.get(key), Some(Known::Flow(known)) if *known == index) {
            self.by_key.remove(key);
        }
    }
}

impl Flow {
    pub(crate) fn new(key: FlowKey, syn: HeldSyn, since: Instant) -> Self {
        Self {
            key,
            generation: 0,
            since,
            state: FlowState::Held(syn),
            ending: Ending::Owned,
            is_dirty: false,
            is_reset: false,
            reset_waker: None,
            armed: Armed::default(),
        }
    }

    /// Tells the owner that the container has ended the flow.
    pub(crate) fn on_reset(&mut self) {
        self.is_reset = true;
        if let Some(waker) = self.reset_waker.take() {
            waker.wake();
        }
    }

    /// Returns the stream of an accepted flow.
    pub(crate) fn stream_mut(&mut self) -> Result<&mut Stream, FlowError> {
        match &mut self.state {
            FlowState::Open(stream) => Ok(stream),
            FlowState::Held(_) => Err(FlowError::NotAccepted),
            FlowState::GivenUp => Err(FlowError::Reset),
        }
    }
}

impl Stream {
    pub(crate) fn new(ring: RingSocket, syn: &HeldSyn, give_up: Instant) -> Self {
        Self {
            ring,
            mss: syn.mss(),
            first_seq: syn.seq.wrapping_add(1),
            sent: Sent::default(),
            is_fin_wanted: false,
            is_detached: false,
            give_up: Some(give_up),
        }
    }

    /// Whether a segment reaches beyond the window of our SYN-ACK.
    ///
    /// smoltcp takes the window of its SYN-ACK, which is not scaled, for a scaled one until it has sent the next packet,
    /// and would accept more than its ring holds.
    pub(crate) fn is_beyond_first_window(&self, segment: &Segment) -> bool {
        let window = self.ring.ring_bytes().min(usize::from(u16::MAX)) as u32;
        let reach = segment.seq.wrapping_sub(self.first_seq).wrapping_add(segment.payload_len as u32);
        self.sent.is_syn && segment.payload_len > 0 && reach > window
    }

    /// Hands to smoltcp what had to wait.
    pub(crate) fn apply(&mut self, ending: &mut Ending) {
        let socket = self.ring.socket_mut();
        let is_handshake = socket.state() == State::SynReceived;
        if *ending == Ending::InOrder && socket.recv_queue() > 0 {
            *ending = Ending::ResetBehindData; // Nobody will read these bytes, which the container must not believe.
        }
        let is_over = socket.state() == State::TimeWait;
        if *ending == Ending::ResetBehindData && socket.send_queue() == 0 && !is_over {
            *ending = Ending::Reset;
            socket.abort();
        } else if self.is_fin_wanted && !is_handshake {
            socket.close();
        }
    }

    /// Sets the time to give up, as the state of the connection asks for.
    ///
    /// Bytes that the container has not acknowledged are waited for without limit: it may be a paused reader, and if its
    /// process dies, its kernel resets the flow.
    pub(crate) fn update_give_up(&mut self, ending: Ending, fin_wait_until: Instant) {
        match self.ring.socket().state() {
            State::SynReceived => {}
            State::FinWait2 if ending != Ending::Owned => {
                self.give_up.get_or_insert(fin_wait_until);
            }
            State::Closed
            | State::Listen
            | State::SynSent
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait => self.give_up = None,
        }
    }

    pub(crate) fn on_sent(&mut self, segment: &Segment) {
        self.sent = Sent { seq_end: segment.sequence_end(), ack: segment.ack, is_syn: segment.has_syn() };
    }
}
