//! Connections that have become something else: WebSocket and other upgrades, CONNECT.

use std::sync::Arc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use crate::engine::engagements::Engaged;
use crate::engine::relay;
use crate::engine::stream::Message;
use crate::engine::tap::Copies;
use crate::engine::tcp::ended;

/// Relays between both sides to their ends, or to that of the engagement that has taken them. `message` lasts as long.
pub(crate) async fn join(caller: OnUpgrade, server: OnUpgrade, taker: Option<Arc<Engaged>>, message: Arc<Message>) {
    let joined = async {
        let (caller, server) = tokio::try_join!(caller, server).map_err(std::io::Error::other)?;
        relay::join(&mut TokioIo::new(caller), &mut TokioIo::new(server), &mut Copies::default()).await
    };
    tokio::select! {
        joined = joined => if let Err(error) = joined {
            tracing::debug!(%error, "an upgraded connection was cut off");
        },
        () = ended(taker.as_deref()) => {}
    }
    drop(message);
}
