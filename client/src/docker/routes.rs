//! Routes for a connection that is there: its own container has no right to add any, so one of a moment does.

use std::time::Duration;

use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{CreateContainerOptions, InspectContainerOptions};

use super::connections::Connection;
use super::link::Purpose;
use super::{Engine, failed, label, role};
use crate::attach::{Empty, Subnets, reply, request};
use crate::error::{CliError, Result};

/// How long the container of a moment may run: it needs milliseconds.
const HELPER_LIMIT: Duration = Duration::from_secs(10);

impl Engine {
    /// Has the subnets routed that came up in the cluster of `connection` since it was made; returns them.
    ///
    /// # Errors
    /// When the daemon or the engine does not do its part.
    pub(crate) async fn route_new_subnets(&self, connection: &Connection) -> Result<Vec<String>> {
        let mut link = self.attach(&connection.id, Purpose::Talk).await?;
        let reply::Kind::Subnets(Subnets { subnets }) =
            link.request(request::Kind::NewSubnets(Empty {}), |_| {}).await?
        else {
            return Err(CliError::bug("the daemon was asked for subnets and answered something else"));
        };
        if subnets.is_empty() {
            return Ok(subnets);
        }
        let said = self.add_routes(connection, &subnets).await?;
        // The daemon looks for itself whether they are there.
        let request = request::Kind::Routed(Subnets { subnets: subnets.clone() });
        match link.request(request, |_| {}).await {
            Ok(_) => Ok(subnets),
            Err(error) if said.is_empty() => Err(error),
            Err(error) => Err(error.detail(said)),
        }
    }

    /// Runs `tp daemon route` in the network of `connection`; returns what it said.
    async fn add_routes(&self, connection: &Connection, subnets: &[String]) -> Result<String> {
        let what = format!("add routes to {}", connection.container());
        let daemon = self.docker.inspect_container(&connection.id, None::<InspectContainerOptions>).await;
        let image = daemon.map_err(|e| failed(&what, &e))?.image;
        let body = create_body(connection, image, subnets);
        let created = self.docker.create_container(None::<CreateContainerOptions>, body).await;
        let id = created.map_err(|e| failed(&what, &e))?.id;
        match self.start_and_listen(&id).await {
            Ok(output) => Ok(output.tail(HELPER_LIMIT).await),
            Err(e) => {
                self.remove(&id).await?;
                Err(failed(&what, &e))
            }
        }
    }
}

fn create_body(connection: &Connection, image: Option<String>, subnets: &[String]) -> ContainerCreateBody {
    let labels = [(label::ROLE, role::HELPER), (label::CONNECTION, &connection.name)];
    let command = ["/tp", "daemon", "route"].map(str::to_owned);
    ContainerCreateBody {
        image,
        cmd: Some(command.into_iter().chain(subnets.iter().cloned()).collect()),
        labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
        host_config: Some(HostConfig {
            auto_remove: Some(true),
            network_mode: Some(format!("container:{}", connection.id)),
            cap_drop: Some(vec!["ALL".to_owned()]),
            cap_add: Some(vec!["NET_ADMIN".to_owned()]),
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}
