//! Errors of a lane and of a flow.

use std::io;

use tp_protocol::error_class::ErrorClass;
use tp_protocol::frame::FrameError;
use tp_protocol::hello::{HelloError, Refusal};
use tp_protocol::open::{OpenError, OpenRefused};
use tp_protocol::resume::ResumeError;

/// A lane could not be made, or has ended. All its flows end with it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaneError {
    /// The byte stream below ended or failed.
    #[error("lane lost: {0}")]
    Io(#[from] io::Error),
    /// The peer's first bytes are not a hello.
    #[error(transparent)]
    Hello(#[from] HelloError),
    /// The peer's hello is valid but says neither welcome nor why not.
    #[error("peer sent an empty hello")]
    EmptyHello,
    /// The peer did not let the lane in.
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// The peer did not answer in time.
    #[error("peer did not answer for {0:?}")]
    TimedOut(std::time::Duration),
    /// The peer broke the rules of carrying a lane over.
    #[error("lane lost: {0}")]
    Resume(#[from] ResumeError),
    /// HTTP/2 failed.
    #[error("lane lost: {0}")]
    Http2(#[from] h2::Error),
}

/// A flow could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlowOpenError {
    /// The far end said no.
    #[error(transparent)]
    Refused(#[from] OpenRefused),
    /// The request cannot be expressed.
    #[error(transparent)]
    Invalid(#[from] OpenError),
    /// The answer is not one of this protocol.
    #[error("peer answered {0} without a reason")]
    BadAnswer(http::StatusCode),
    /// The lane is gone.
    #[error("lane lost: {0}")]
    Lane(#[from] h2::Error),
}

impl FlowOpenError {
    /// The class to show the socket that asked.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Refused(refused) => refused.class,
            Self::Invalid(_) | Self::BadAnswer(_) | Self::Lane(_) => ErrorClass::Failed,
        }
    }
}

/// A connection was not taken by the client that waited for one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OfferError {
    /// Its handler did not accept.
    #[error(transparent)]
    Refused(#[from] OpenRefused),
    /// The client's end of the stream is gone; another one may be there.
    #[error("the client is gone: {0}")]
    Gone(FlowError),
}

/// A flow ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlowError {
    /// The far end reset the flow, behind all its data.
    #[error("flow reset by the far end: {0}")]
    Reset(OpenRefused),
    /// The stream was cancelled, or the lane is gone.
    #[error("flow cancelled: {0}")]
    Cancelled(#[from] h2::Error),
    /// The far end went on on another lane, which is not there.
    #[error("flow lost between two lanes")]
    Stranded,
    /// The peer broke the protocol on this stream.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The peer ended the stream before its message was whole, or sent one that is too long.
    #[error("peer sent a message that is cut short or too long")]
    BadMessage,
}
