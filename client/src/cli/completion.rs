//! `tp completion`.

use clap_complete::Shell;

use super::output::print;
use crate::error::Result;

/// Print a completion script for a shell
#[derive(clap::Args, Debug)]
#[command(after_help = "\
For this shell:    source <(tp completion bash)
For all of yours:  tp completion bash > ~/.local/share/bash-completion/completions/tp
                   tp completion zsh > \"${fpath[1]}/_tp\"
                   tp completion fish > ~/.config/fish/completions/tp.fish")]
pub(super) struct CompletionArgs {
    /// The shell
    shell: Shell,
}

/// Runs `tp completion`.
pub(super) fn run(args: &CompletionArgs) -> Result<u8> {
    let mut script = Vec::new();
    // The scripts of some shells complete hidden commands too: they are left out here.
    let all = super::command();
    let visible = all.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()).cloned();
    let mut command = clap::Command::new("tp").version(env!("CARGO_PKG_VERSION")).subcommands(visible);
    clap_complete::generate(args.shell, &mut command, "tp", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(0)
}
