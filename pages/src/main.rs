//! Writes manual pages and shell completions from what the programs' command lines are: `avidfs-pages FOLDER`.
//! A program of its own, so that those it describes do not carry what describes them.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use avidfs::cli::Cli;
use avidfs::helper::{MountHelper, UmountHelper};
use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use shardd::config::Flags;

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1) else {
        eprintln!("avidfs-pages: say where: avidfs-pages FOLDER");
        return ExitCode::from(2);
    };
    match write(Path::new(&folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("avidfs-pages: {}: {error}", Path::new(&folder).display());
            ExitCode::FAILURE
        }
    }
}

/// `man1`, `man8`, `bash`, `zsh` and `fish` below a folder.
fn write(folder: &Path) -> io::Result<()> {
    let mut avidfs = Cli::command();
    // Gives each command its full name.
    avidfs.build();
    for command in avidfs.get_subcommands() {
        let name = command.get_display_name().unwrap_or_else(|| command.get_name());
        manual(folder, 1, name, command.clone().version(env!("CARGO_PKG_VERSION")))?;
    }
    manual(folder, 1, "avidfs", Cli::command())?;
    manual(folder, 8, "shardd", Flags::command())?;
    for (name, helper) in [("mount", MountHelper::command()), ("umount", UmountHelper::command())] {
        manual(folder, 8, &format!("{name}.avidfs"), helper)?;
        let link = format!(".so man8/{name}.avidfs.8\n");
        std::fs::write(folder.join(format!("man8/{name}.fuse.avidfs.8")), link)?;
    }
    for (name, mut command) in [("avidfs", Cli::command()), ("shardd", Flags::command())] {
        for (shell, place) in [(Shell::Bash, "bash"), (Shell::Zsh, "zsh"), (Shell::Fish, "fish")] {
            let place = folder.join(place);
            std::fs::create_dir_all(&place)?;
            clap_complete::generate_to(shell, &mut command, name, place)?;
        }
    }
    Ok(())
}

fn manual(folder: &Path, section: u8, name: &str, command: Command) -> io::Result<()> {
    let folder = folder.join(format!("man{section}"));
    std::fs::create_dir_all(&folder)?;
    let mut page = Vec::new();
    Man::new(command).section(section.to_string()).render(&mut page)?;
    std::fs::write(folder.join(format!("{name}.{section}")), page)
}
