//! The lanes for bulk. A flow that has moved much goes on on one of them, so that on lane 0 nobody waits behind it.
//!
//! They are opened when a flow asks, each flow gets the one that carries the fewest, and they close when none has had a
//! flow for a while. Like lane 0 they outlive their byte streams.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tp_protocol::hello::{CONTINUE, ClientHello, SessionKey, Welcome};
use tp_protocol::lane::Direction;
use tp_protocol::limits;
use tp_tunnel::carrier::{CarrierState, LaneHandle};
use tp_tunnel::client::{Connected, Driver, Lane};
use tp_tunnel::flow::Continuation;

use crate::daemon::backoff::Backoff;
use crate::daemon::kube::ManagerRoute;

/// How long one attempt to open a lane may take. The flow stays where it is meanwhile.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// A lane without flows closes after between one and two of these.
const IDLE_INTERVAL: Duration = Duration::from_secs(60);

/// The lanes for bulk, of whichever session there is.
#[derive(Default)]
pub(crate) struct BulkLanes {
    session: RefCell<Option<Rc<Session>>>,
}

/// Where the lanes of one session are opened. They end with it.
struct Session {
    route: ManagerRoute,
    hello: ClientHello,
    slots: [Rc<Slot>; limits::BULK_LANES as usize],
    keepers: RefCell<JoinSet<()>>,
}

#[derive(Default)]
struct Slot {
    /// The lane, when it is open; locked while it is being opened.
    lane: Mutex<Option<Lane>>,
    flows: Cell<usize>,
}

/// A flow's place on a lane for bulk, until it is dropped.
pub(crate) struct Seat(Rc<Slot>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.flows.set(self.0.flows.get() - 1);
    }
}

impl BulkLanes {
    /// Takes what the manager said when it let lane 0 in: lanes of another session end.
    pub(crate) fn on_welcome(&self, welcome: &Welcome, route: &ManagerRoute, client: &ClientHello) {
        let key = welcome.session.as_ref().filter(|_| welcome.features.iter().any(|feature| feature == CONTINUE));
        let mut session = self.session.borrow_mut();
        if !(welcome.rejoined && session.as_ref().map(|session| session.key()) == Some(key)) {
            *session = key.map(|key| Rc::new(Session::new(route, client, key)));
        }
    }

    /// Whether another flow could go on on one of them.
    pub(crate) fn has_room(&self, direction: Direction) -> bool {
        let session = self.session.borrow();
        session.as_ref().is_some_and(|it| it.slots_of(direction).any(|(_, slot)| slot.flows.get() < limits::BULK_FLOWS))
    }

    /// Has a flow of lane 0 go on on the lane that carries the fewest. `None`: it stays where it is.
    pub(crate) async fn carry_on(&self, flow: u64, direction: Direction, continuation: Continuation) -> Option<Seat> {
        let session = self.session.borrow().clone()?;
        let (number, slot) = session.slots_of(direction).min_by_key(|(_, slot)| slot.flows.get())?;
        slot.flows.set(slot.flows.get() + 1);
        let seat = Seat(Rc::clone(slot));
        let lane = session.lane(number, slot).await?;
        match lane.carry_on(flow, continuation).await {
            Ok(()) => Some(seat),
            Err(error) => {
                tracing::debug!(flow, lane = number, %error, "the flow stays on lane 0");
                None
            }
        }
    }

    /// How many are open.
    pub(crate) fn open(&self) -> u32 {
        self.session.borrow().as_ref().map_or(0, |session| {
            let is_open = |slot: &&Rc<Slot>| slot.lane.try_lock().is_ok_and(|lane| lane.is_some());
            session.slots.iter().filter(is_open).count().try_into().unwrap_or(u32::MAX)
        })
    }
}

impl Session {
    fn new(route: &ManagerRoute, client: &ClientHello, key: &SessionKey) -> Self {
        Self {
            route: route.clone(),
            hello: ClientHello { session: Some(key.clone()), ..client.clone() },
            slots: Default::default(),
            keepers: RefCell::default(),
        }
    }

    /// The lanes of one direction, with their numbers.
    fn slots_of(&self, direction: Direction) -> impl Iterator<Item = (u32, &Rc<Slot>)> {
        (1..).zip(&self.slots).filter(move |(number, _)| Direction::of_lane(*number) == Some(direction))
    }

    fn key(&self) -> Option<&SessionKey> {
        self.hello.session.as_ref()
    }

    /// The lane of this number, which is opened when it is not.
    async fn lane(&self, number: u32, slot: &Rc<Slot>) -> Option<Lane> {
        let mut lane = slot.lane.lock().await;
        if lane.is_none() {
            let hello = ClientHello { lane: number, ..self.hello.clone() };
            match self.open(&hello).await {
                Ok(Connected { welcome, lane: opened, driver, handle }) => {
                    tracing::info!(lane = number, "lane for bulk opened");
                    let keeper = Keeper {
                        route: self.route.clone(),
                        hello,
                        slot: Rc::clone(slot),
                        handle,
                        grace: Duration::from_millis(welcome.resume_grace_ms.into()),
                    };
                    let mut keepers = self.keepers.borrow_mut();
                    while keepers.try_join_next().is_some() {}
                    keepers.spawn_local(keeper.run(driver));
                    *lane = Some(opened);
                }
                Err(error) => tracing::info!(lane = number, error, "lane for bulk not opened"),
            }
        }
        lane.clone()
    }

    async fn open(&self, hello: &ClientHello) -> Result<Connected, String> {
        let admitted = self.route.open_lane(hello, OPEN_TIMEOUT).await.map_err(|failure| failure.message)?;
        tokio::time::timeout(OPEN_TIMEOUT, admitted.start())
            .await
            .map_err(|_| "no answer".to_owned())?
            .map_err(|error| error.to_string())
    }
}

/// Drives one lane to its end, and brings it byte streams.
struct Keeper {
    route: ManagerRoute,
    hello: ClientHello,
    slot: Rc<Slot>,
    handle: LaneHandle,
    grace: Duration,
}

impl Keeper {
    async fn run(self, mut driver: Driver) {
        let mut idle = interval(IDLE_INTERVAL);
        idle.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut was_idle = false;
        let ended = loop {
            tokio::select! {
                ended = &mut driver => break ended,
                CarrierState::Lost(why) = self.handle.lost() => {
                    tracing::info!(lane = self.hello.lane, why, "lane for bulk lost its byte stream");
                    if !self.bring_back().await {
                        self.handle.fail("the tunnel was down for too long");
                    }
                }
                _ = idle.tick() => {
                    let is_idle = self.slot.flows.get() == 0;
                    if is_idle && was_idle {
                        // The lane ends when nobody can open a flow on it any more, and the last one is done.
                        *self.slot.lane.lock().await = None;
                    }
                    was_idle = is_idle;
                }
            }
        };
        tracing::info!(lane = self.hello.lane, error = ended.err().map(|e| e.to_string()), "lane for bulk closed");
        *self.slot.lane.lock().await = None;
    }

    /// Brings the lane another byte stream; false when it is over.
    async fn bring_back(&self) -> bool {
        let given_up_at = Instant::now() + self.grace;
        let mut backoff = Backoff::new();
        loop {
            let received = self.handle.detach("another byte stream is being opened");
            let hello = ClientHello { resume_received: Some(received), ..self.hello.clone() };
            match self.route.open_lane(&hello, OPEN_TIMEOUT).await {
                Ok(admitted) if admitted.welcome.resume_received.is_some() => {
                    return admitted.resume(&self.handle).is_ok();
                }
                Ok(_) => return false,
                Err(_) if Instant::now() > given_up_at => return false,
                Err(_) => backoff.wait().await,
            }
        }
    }
}
