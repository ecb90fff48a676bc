//! An imitation of a connection's daemon, and of the traffic manager behind it: enough to engage a workload.

use std::io::{BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use bytes::BytesMut;
use tp_protocol::engage::call::{
    Answer, ContainerSpec, Described, Engagements, Environment, Failure, Held, Variable, answer, call,
};
use tp_protocol::engage::wire::Kind;
use tp_protocol::frame;

use crate::attach::{Empty, MAX_ATTACH_BYTES, Reply, Request, reply, request};

/// What it answers, and what it was asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Daemon {
    /// How the engaged container runs.
    pub(crate) container: ContainerSpec,
    /// The container's environment.
    pub(crate) environment: Vec<(&'static str, &'static str)>,
    /// Why the environment is not known.
    pub(crate) problem: &'static str,
    /// See [`Self::asked`].
    pub(crate) said: Arc<Mutex<Vec<String>>>,
}

impl Daemon {
    /// What it was asked so far, a word each.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.said.lock().unwrap().clone()
    }

    /// Answers the requests of one stream, as the engine passes on what a process in a container says.
    pub(crate) fn talk(&self, mut requests: BufReader<UnixStream>, mut replies: UnixStream) {
        let (mut inbox, mut piece) = (BytesMut::new(), [0; 4096]);
        loop {
            while let Some(Request { kind }) = frame::decode(&mut inbox, MAX_ATTACH_BYTES).unwrap() {
                let mut reply = BytesMut::new();
                frame::encode(&Reply { kind: Some(self.reply(kind.unwrap())) }, &mut reply);
                // Stream 1, and the length (Docker Engine API, "Stream format").
                let mut head = [1, 0, 0, 0, 0, 0, 0, 0];
                head[4..].copy_from_slice(&u32::try_from(reply.len()).unwrap().to_be_bytes());
                if replies.write_all(&head).and_then(|()| replies.write_all(&reply)).is_err() {
                    return;
                }
            }
            match requests.read(&mut piece) {
                Ok(len @ 1..) => inbox.extend_from_slice(&piece[..len]),
                Ok(0) | Err(_) => return,
            }
        }
    }

    fn reply(&self, request: request::Kind) -> reply::Kind {
        let call = match request {
            request::Kind::Engagements(asked) => asked.call.kind.unwrap(),
            request::Kind::Status(_) => return reply::Kind::Status(Box::default()),
            _ => return reply::Kind::Done(Empty {}),
        };
        reply::Kind::Answer(Box::new(Answer { kind: Some(self.answer(call)) }))
    }

    fn answer(&self, call: call::Kind) -> answer::Kind {
        let held = |what: i32| Held {
            id: "tp-kiosk-1".into(),
            namespace: "web".into(),
            workload: "deployment/kiosk".into(),
            what,
            container: "app".into(),
            ..Held::default()
        };
        let (asked, answer) = match call {
            call::Kind::Engage(engage) if engage.workload == "nope" => {
                let failure = Failure { message: "no workload nope in namespace web".into(), hint: String::new() };
                ("refused".to_owned(), answer::Kind::Failure(failure))
            }
            call::Kind::Engage(engage) => {
                let what = Kind::try_from(engage.what).unwrap();
                let asked = format!("{what:?} {}/{} {}", engage.namespace, engage.workload, engage.ports.len());
                (asked, answer::Kind::Engaged(held(engage.what)))
            }
            call::Kind::Describe(describe) => {
                let variable = |(name, value): &(&str, &str)| Variable { name: (*name).into(), value: (*value).into() };
                let variables = self.environment.iter().map(variable).collect();
                let environment =
                    Some(Environment { variables, problem: self.problem.into(), ..Environment::default() });
                let described = Described { container: Some(self.container.clone()), environment };
                (format!("describe {}", describe.id), answer::Kind::Described(described))
            }
            call::Kind::Leave(leave) => {
                let left = Engagements { engagements: vec![held(Kind::Ingest.into())] };
                (format!("leave {}", leave.what), answer::Kind::Left(left))
            }
            call::Kind::List(_) | call::Kind::Identify(_) => {
                ("list".to_owned(), answer::Kind::Listed(Default::default()))
            }
        };
        self.said.lock().unwrap().push(asked);
        answer
    }
}
