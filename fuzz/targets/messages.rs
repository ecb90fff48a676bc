//! What is framed: hellos of both sides, and the messages of the control channel and of one-time ports.

use std::fmt::Debug;

use bytes::BytesMut;
use prost::Message;
use tp_protocol::control::{FromManager, ToManager};
use tp_protocol::engage::{Engagement, wire};
use tp_protocol::frame;
use tp_protocol::hello::{self, ClientHello, ServerHello};
use tp_protocol::identity::{Claim, Verdict};
use tp_protocol::limits::MAX_CONTROL_BYTES;

pub(crate) fn run(data: &[u8]) {
    if let Some(hello) = hello_again::<ClientHello>(data) {
        let _ = hello.negotiate("0.1.0");
    }
    hello_again::<ServerHello>(data);
    messages_again::<ToManager>(data);
    messages_again::<FromManager>(data);
    messages_again::<Claim>(data);
    messages_again::<Verdict>(data);
    engagement_again(data);
}

/// Reads an engagement, which compiles the regular expressions of its filter; what is read is written so that it reads the
/// same.
fn engagement_again(data: &[u8]) {
    let Ok(message) = wire::Engagement::decode(data) else { return };
    let Ok(engagement) = Engagement::try_from(&message) else { return };
    assert_eq!(Engagement::try_from(&wire::Engagement::from(&engagement)), Ok(engagement.clone()));
}

/// Reads a hello; what is read is written so that it reads the same.
fn hello_again<M: Message + Debug + Default + PartialEq>(data: &[u8]) -> Option<M> {
    let message = hello::decode::<M>(&mut BytesMut::from(data)).ok()??;
    let mut wire = BytesMut::new();
    hello::encode(&message, &mut wire);
    let again = hello::decode::<M>(&mut wire).expect("it is valid").expect("it is whole");
    assert!(again == message && wire.is_empty(), "{message:?} becomes {again:?}");
    Some(message)
}

/// Reads messages to the end; what is read is written so that it reads the same.
fn messages_again<M: Message + Debug + Default + PartialEq>(data: &[u8]) {
    let mut inbox = BytesMut::from(data);
    while let Ok(Some(message)) = frame::decode::<M>(&mut inbox, MAX_CONTROL_BYTES) {
        let mut wire = BytesMut::new();
        frame::encode(&message, &mut wire);
        assert_eq!(frame::decode::<M>(&mut wire, MAX_CONTROL_BYTES), Ok(Some(message)));
        assert!(wire.is_empty());
    }
}
