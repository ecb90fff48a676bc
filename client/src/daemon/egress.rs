//! From whose place in the network the connection's flows are dialled: the manager's, or a workload's.
//!
//! Where a workload's is wanted, no flow goes by the manager's instead, not even for a moment: it waits until the manager holds the
//! engagement for this session. One that is lost, with the session or with its workload, is asked for again, as it was the
//! first time.

use std::cell::RefCell;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use tp_protocol::engage::call::{Engage, Held};
use tp_protocol::engage::wire::Kind;

/// How long an engagement has to be missing before another is asked for: a manager that was restarted takes up what it reads of
/// Leases a moment after its clients are back.
const MISSING: Duration = Duration::from_secs(5);

/// Whose place it is, and whether it can be had.
#[derive(Debug, Default)]
pub(crate) struct Egress {
    wanted: RefCell<Option<Engage>>,
    state: watch::Sender<State>,
    /// Why it cannot be had; empty when it can, or nobody knows yet.
    problem: RefCell<String>,
}

/// From where flows are dialled at the moment.
#[derive(Clone, Debug, Default, PartialEq)]
enum State {
    /// From the manager's place.
    #[default]
    Manager,
    /// From nowhere: the workload's place is wanted.
    Missing,
    /// From the place of this workload, `KIND/NAME`.
    Workload(String),
}

impl Egress {
    /// Wants the place that this asks for, which was given or will be.
    pub(crate) fn want(&self, asked: Engage) {
        self.wanted.replace(Some(asked));
        self.state.send_if_modified(|state| {
            let is_new = *state == State::Manager;
            if is_new {
                *state = State::Missing;
            }
            is_new
        });
    }

    /// How it is asked for; `None` where the manager's place will do.
    pub(crate) fn wanted(&self) -> Option<Engage> {
        self.wanted.borrow().clone()
    }

    /// Takes all that the session holds.
    pub(crate) fn set(&self, held: &[Held]) {
        if self.wanted.borrow().is_none() {
            return;
        }
        let via = held.iter().find(|held| held.what() == Kind::Via);
        if let Some(problem) = via.map(|held| held.problem.as_str()) {
            self.set_problem(problem);
        }
        let now = via.map_or(State::Missing, |held| State::Workload(held.workload.clone()));
        self.state.send_if_modified(|state| {
            let is_new = *state != now;
            *state = now;
            is_new
        });
    }

    /// The place that was asked for is here before anybody is told so.
    pub(crate) fn on_engaged(&self, held: &Held) {
        if held.what() == Kind::Via {
            self.set(std::slice::from_ref(held));
        }
    }

    /// Says why the place cannot be had; an empty text when it can.
    pub(crate) fn set_problem(&self, problem: &str) {
        problem.clone_into(&mut self.problem.borrow_mut());
    }

    /// Why it cannot be had; empty when it can, or nobody knows.
    pub(crate) fn problem(&self) -> String {
        self.problem.borrow().clone()
    }

    /// The workload by way of which to dial, `None` for the manager. Waits while it cannot be had.
    pub(crate) async fn via(&self) -> Option<String> {
        let mut state = self.state.subscribe();
        let known = state.wait_for(|state| *state != State::Missing).await;
        match known.map(|state| state.clone()) {
            Ok(State::Workload(workload)) => Some(workload),
            // It ends with the sender, which is ours.
            Ok(State::Manager | State::Missing) | Err(_) => None,
        }
    }

    /// Waits until the place has been wanted and missing for a while.
    pub(crate) async fn missing(&self) {
        let mut state = self.state.subscribe();
        loop {
            // Fails without a sender, which is ours.
            let _ = state.wait_for(|state| *state == State::Missing).await;
            if timeout(MISSING, state.wait_for(|state| *state != State::Missing)).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;

    use futures_util::FutureExt;
    use tokio::time::Instant;

    use super::*;

    fn held(what: Kind, workload: &str) -> Held {
        Held { what: what.into(), workload: workload.into(), ..Held::default() }
    }

    fn now_or_never<T>(future: impl Future<Output = T>) -> Option<T> {
        pin!(future).now_or_never()
    }

    #[test]
    fn the_manager_dials_unless_a_workload_is_wanted() {
        let egress = Egress::default();
        assert_eq!(now_or_never(egress.via()), Some(None));
        egress.set(&[held(Kind::Intercept, "deployment/web")]);
        assert_eq!(now_or_never(egress.via()), Some(None));
        assert_eq!(egress.wanted(), None);
    }

    #[test]
    fn flows_wait_for_the_workload_and_never_go_by_the_manager_instead() {
        let egress = Egress::default();
        egress.want(Engage::default());
        assert_eq!(now_or_never(egress.via()), None);
        egress.on_engaged(&held(Kind::Intercept, "deployment/api"));
        assert_eq!(now_or_never(egress.via()), None);
        egress.on_engaged(&held(Kind::Via, "deployment/web"));
        assert_eq!(now_or_never(egress.via()), Some(Some("deployment/web".to_owned())));
        egress.set(&[held(Kind::Intercept, "deployment/api")]);
        assert_eq!(now_or_never(egress.via()), None);
    }

    #[test]
    fn what_is_wrong_is_told_until_it_is_right() {
        let egress = Egress::default();
        egress.want(Engage::default());
        egress.set_problem("no right");
        egress.set(&[]);
        assert_eq!(egress.problem(), "no right");
        egress.set(&[Held { problem: "the stand-in is being made again".into(), ..held(Kind::Via, "deployment/web") }]);
        assert_eq!(egress.problem(), "the stand-in is being made again");
        egress.set(&[held(Kind::Via, "deployment/web")]);
        assert_eq!(egress.problem(), "");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_back_soon_was_not_missing() {
        let egress = Egress::default();
        egress.want(Engage::default());
        let began = Instant::now();
        let flicker = async {
            tokio::time::sleep(MISSING / 2).await;
            egress.set(&[held(Kind::Via, "deployment/web")]);
            tokio::time::sleep(MISSING).await;
            egress.set(&[]);
        };
        tokio::join!(egress.missing(), flicker);
        assert_eq!(began.elapsed().as_secs(), (MISSING * 5 / 2).as_secs());
    }
}
