//! What a container on this machine takes over from a workload's.

use tp_protocol::engage::call::ContainerSpec;

use super::parse::{Flag, Parsed};
use super::split::Split;
use crate::cli::environment::Environment;
use crate::error::{CliError, Result};

/// What docker is told besides what the user said. What the user said is not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::cli) struct Borrowed {
    /// Variables. Where the user sets one, theirs counts.
    pub(super) environment: Environment,
    /// Docker's flags.
    pub(super) flags: Vec<Flag>,
    /// The image, when the user named none, and what it is given.
    pub(super) image: Option<(String, Vec<String>)>,
}

impl Borrowed {
    /// What the handler of an engagement takes over: the environment, and where it works.
    pub(in crate::cli) fn for_handler(spec: &ContainerSpec, environment: Environment) -> Self {
        let workdir = (!spec.working_dir.is_empty()).then(|| flag("workdir", &spec.working_dir));
        Self { environment, flags: workdir.into_iter().collect(), image: None }
    }

    /// What a container takes over that is like a workload's. `processors` are those of the engine's machine.
    ///
    /// # Errors
    /// A user error when the workload's image is meant and not known.
    pub(super) fn like(
        spec: &ContainerSpec,
        environment: Environment,
        parsed: &Parsed,
        split: &Split,
        processors: u64,
    ) -> Result<Self> {
        let own = set_by(split, &environment);
        let mut borrowed = Self::for_handler(spec, environment);
        // Docker takes no group without a user, and then the image's.
        if let Some(user) = spec.user {
            let group = spec.group.map(|group| format!(":{group}")).unwrap_or_default();
            borrowed.flags.push(flag("user", &format!("{user}{group}")));
        }
        if spec.memory_limit_bytes > 0 {
            borrowed.flags.push(flag("memory", &spec.memory_limit_bytes.to_string()));
        }
        // Docker refuses more than there are, where Kubernetes would run the pod elsewhere.
        let millis = spec.cpu_limit_millis;
        if millis > 0 && millis < processors.saturating_mul(1000) {
            borrowed.flags.push(flag("cpus", &format!("{}.{:03}", millis / 1000, millis % 1000)));
        }
        if parsed.image.is_none() {
            if spec.image.is_empty() {
                return Err(CliError::user("the traffic manager did not tell the workload's image")
                    .hint("name an image behind the options"));
            }
            borrowed.image = Some((spec.image.clone(), Vec::new()));
            if !split.has("entrypoint") {
                borrowed.take_command(spec, &own);
            }
        }
        Ok(borrowed)
    }

    /// Kubernetes' `command` is Docker's entrypoint, with which the image's command does not count; `args` are its command.
    fn take_command(&mut self, spec: &ContainerSpec, environment: &Environment) {
        let mut command = spec.command.iter().map(|word| environment.expand(word));
        self.flags.extend(command.next().map(|program| flag("entrypoint", &program)));
        let args = command.chain(spec.args.iter().map(|word| environment.expand(word)));
        if let Some((_, taken)) = &mut self.image {
            taken.extend(args);
        }
    }

    /// The flags, but for those that the user's own make void.
    pub(super) fn flags_beside<'a>(&'a self, split: &'a Split) -> impl Iterator<Item = &'a Flag> {
        self.flags.iter().filter(|flag| match flag.name.as_str() {
            "cpus" => !["cpus", "cpu-period", "cpu-quota"].iter().any(|name| split.has(name)),
            name => !split.has(name),
        })
    }
}

/// The environment with what the user's `-e NAME=VALUE` sets.
fn set_by(split: &Split, environment: &Environment) -> Environment {
    let mut environment = environment.clone();
    for flag in split.pass.iter().filter(|flag| flag.name == "env") {
        if let Some((name, value)) = flag.text().split_once('=') {
            environment.set(name.to_owned(), value.to_owned());
        }
    }
    environment
}

fn flag(name: &str, value: &str) -> Flag {
    Flag { name: name.to_owned(), value: Some(value.into()) }
}

#[cfg(test)]
mod tests {
    use super::super::split::split;
    use super::*;

    fn spec() -> ContainerSpec {
        let words = |list: &[&str]| list.iter().map(|&word| word.to_owned()).collect();
        ContainerSpec {
            image: "registry/web:1".into(),
            command: words(&["/bin/web", "--name=$(NAME)"]),
            args: words(&["$$(NAME)", "$(OTHER)"]),
            working_dir: "/srv".into(),
            user: Some(1000),
            group: Some(2000),
            cpu_limit_millis: 1_250,
            memory_limit_bytes: 64 << 20,
            ..ContainerSpec::default()
        }
    }

    /// The flags, and image with arguments, of a container like `spec` that is run with docker's `flags`.
    fn like(spec: &ContainerSpec, flags: &[(&str, &str)], image: Option<&str>) -> (String, String) {
        let environment = [("NAME".to_owned(), "web".to_owned())].into_iter().collect();
        let split = split(flags.iter().map(|(name, value)| flag(name, value)).collect()).unwrap();
        let parsed = Parsed { image: image.map(Into::into), ..Parsed::default() };
        let borrowed = Borrowed::like(spec, environment, &parsed, &split, 2).unwrap();
        let flags = borrowed.flags_beside(&split).map(|flag| flag.to_arg().into_string().unwrap());
        let flags = flags.collect::<Vec<_>>().join(" ");
        let image = borrowed.image.map(|(image, args)| format!("{image} {}", args.join(" "))).unwrap_or_default();
        (flags, image)
    }

    #[test]
    fn workload_s_own_image_runs_as_it_does_in_its_pod() {
        let (flags, image) = like(&spec(), &[], None);
        assert_eq!(flags, "--workdir=/srv --user=1000:2000 --memory=67108864 --cpus=1.250 --entrypoint=/bin/web");
        assert_eq!(image, "registry/web:1 --name=web $(NAME) $(OTHER)");
        let bare = ContainerSpec { image: "x".into(), args: vec!["y".into()], ..ContainerSpec::default() };
        assert_eq!(like(&bare, &[], None), (String::new(), "x y".to_owned()));
    }

    #[test]
    fn an_image_of_the_user_s_is_not_given_the_workload_s_command() {
        let (flags, image) = like(&spec(), &[], Some("mine"));
        assert_eq!(flags, "--workdir=/srv --user=1000:2000 --memory=67108864 --cpus=1.250");
        assert_eq!(image, "");
    }

    #[test]
    fn what_the_user_says_wins() {
        let flags = [("workdir", "/w"), ("user", "0"), ("memory", "1g"), ("cpu-quota", "5000"), ("env", "NAME=mine")];
        assert_eq!(like(&spec(), &flags, None), {
            ("--entrypoint=/bin/web".to_owned(), "registry/web:1 --name=mine $(NAME) $(OTHER)".to_owned())
        });
        let (flags, image) = like(&spec(), &[("entrypoint", "sh"), ("cpus", "1")], None);
        assert_eq!(flags, "--workdir=/srv --user=1000:2000 --memory=67108864");
        assert_eq!(image, "registry/web:1 ");
    }

    #[test]
    fn limits_that_this_machine_cannot_exceed_are_left_out() {
        let spec = ContainerSpec { cpu_limit_millis: 2_000, user: Some(0), group: None, ..spec() };
        assert_eq!(like(&spec, &[], Some("mine")).0, "--workdir=/srv --user=0 --memory=67108864");
        let spec = ContainerSpec { user: None, ..spec };
        assert_eq!(like(&spec, &[], Some("mine")).0, "--workdir=/srv --memory=67108864");
    }

    #[test]
    fn handler_takes_environment_and_directory_only() {
        let borrowed = Borrowed::for_handler(&spec(), Environment::default());
        assert_eq!(borrowed.flags, [flag("workdir", "/srv")]);
        assert_eq!(borrowed.image, None);
        assert_eq!(Borrowed::for_handler(&ContainerSpec::default(), Environment::default()), Borrowed::default());
    }
}
