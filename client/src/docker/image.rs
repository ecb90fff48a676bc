//! The daemon's image, made from tp's own static binary: no registry, and always the CLI's own version.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use bollard::query_parameters::{CreateImageOptionsBuilder, ListImagesOptionsBuilder, RemoveImageOptionsBuilder};
use futures_util::StreamExt as _;

use super::{Engine, failed, hex, label, role, status};
use crate::error::{CliError, Result};

/// Repository of the daemon's images.
const REPOSITORY: &str = "tp-daemon";
/// Names another binary to make the image of, for hosts that are not Linux and for trying out.
const BINARY_VARIABLE: &str = "TP_DAEMON_BINARY";
/// What older engines list in place of the tags of an image that has none.
const NO_TAG: &str = "<none>:<none>";
/// An image of another build is removed when it is older than this.
const OLD_SECS: i64 = 60 * 60;
/// Digits of the binary's SHA-256 in the tag: 48 bits, no two builds on one machine share them.
const TAG_DIGITS: usize = 12;

/// Architecture of this binary, as Go and the engines spell it.
const OWN_ARCH: &str = match std::env::consts::ARCH.as_bytes() {
    b"x86_64" => "amd64",
    b"aarch64" => "arm64",
    _ => std::env::consts::ARCH,
};

/// An image of a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    /// Its name and tag, or its id.
    pub(crate) reference: String,
    /// When it was made, in seconds since 1970.
    created: i64,
}

impl Engine {
    /// Returns the reference of the daemon's image; makes the image first where the engine does not have it.
    ///
    /// # Errors
    /// User errors: no binary that could run in the engine, or the engine refuses the image.
    pub(crate) async fn ensure_image(&self, mut making: impl FnMut()) -> Result<String> {
        let path = self.binary_path()?;
        let unreadable = |e: io::Error| CliError::user(format!("cannot read {}: {e}", path.display())).because(&e);
        let binary = fs::read(&path).map_err(unreadable)?;
        let digest = hex(ring::digest::digest(&ring::digest::SHA256, &binary).as_ref());
        let tag = format!("{}-{}", env!("CARGO_PKG_VERSION"), &digest[..TAG_DIGITS]);
        let reference = format!("{REPOSITORY}:{tag}");
        match self.docker.inspect_image(&reference).await {
            Ok(_) => return Ok(reference),
            Err(e) if status(&e) == Some(404) => {}
            Err(e) => return Err(failed("look for the daemon's image", &e)),
        }
        check_static(&binary).map_err(|problem| {
            CliError::user(format!("{} cannot run in a container of its own: {problem}", path.display()))
                .hint(format!("use the release binary (dist/tp), or name a static one in {BINARY_VARIABLE}"))
        })?;
        making();
        self.import(&tag, &binary).await?;
        self.remove_old_images(&reference).await;
        Ok(reference)
    }

    /// The binary that fits the engine: this one, or the Linux one that was installed beside it.
    fn binary_path(&self) -> Result<PathBuf> {
        if let Some(path) = std::env::var_os(BINARY_VARIABLE).filter(|path| !path.is_empty()) {
            return Ok(path.into());
        }
        let own = std::env::current_exe().map_err(|e| CliError::bug(format!("cannot find the tp executable: {e}")))?;
        let arch = match self.info.arch.as_str() {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        if cfg!(target_os = "linux") && arch == OWN_ARCH {
            return Ok(own);
        }
        let beside = own.with_file_name(format!("tp-linux-{arch}"));
        if beside.is_file() {
            return Ok(beside);
        }
        Err(CliError::user(format!(
            "the container engine runs linux/{arch}, and there is no tp for it at {}",
            beside.display()
        ))
        .hint(format!("put the Linux release of tp there, or name it in {BINARY_VARIABLE}")))
    }

    async fn import(&self, tag: &str, binary: &[u8]) -> Result<()> {
        let layer = layer(binary).map_err(|e| CliError::bug(format!("cannot pack the daemon's image: {e}")))?;
        let labels = format!("LABEL {}={} {}={}", label::ROLE, role::IMAGE, label::VERSION, env!("CARGO_PKG_VERSION"));
        let options =
            CreateImageOptionsBuilder::new().from_src("-").repo(REPOSITORY).tag(tag).changes(vec![labels]).build();
        let mut answer = self.docker.create_image(Some(options), Some(bollard::body_full(layer.into())), None);
        while let Some(part) = answer.next().await {
            part.map_err(|e| failed("take the daemon's image", &e))?;
        }
        Ok(())
    }

    /// Removes the images of other builds that no container uses. Failures are of no account: it is tidying up. Young
    /// ones stay: another build may be about to make a container of its own.
    async fn remove_old_images(&self, keep: &str) {
        let Ok(images) = self.images().await else { return };
        let now = jiff::Timestamp::now().as_second();
        for image in images {
            let is_old = now.saturating_sub(image.created) > OLD_SECS;
            if is_old && image.reference.trim_start_matches("localhost/") != keep {
                let options = RemoveImageOptionsBuilder::new().build();
                let _in_use = self.docker.remove_image(&image.reference, Some(options), None).await;
            }
        }
    }

    /// All daemon images.
    pub(crate) async fn images(&self) -> Result<Vec<Image>> {
        let filters = HashMap::from([("label", vec![format!("{}={}", label::ROLE, role::IMAGE)])]);
        let options = ListImagesOptionsBuilder::new().filters(&filters).build();
        let listed = self.docker.list_images(Some(options)).await.map_err(|e| failed("list images", &e))?;
        let mut images = Vec::new();
        for image in listed {
            let tags: Vec<_> = image.repo_tags.into_iter().filter(|tag| tag != NO_TAG).collect();
            // An image without a tag is known by its id.
            let references = if tags.is_empty() { vec![image.id] } else { tags };
            images.extend(references.into_iter().map(|reference| Image { reference, created: image.created }));
        }
        Ok(images)
    }

    /// Removes one image.
    ///
    /// # Errors
    /// When a container uses it.
    pub(crate) async fn remove_image(&self, reference: &str) -> Result<()> {
        let options = RemoveImageOptionsBuilder::new().build();
        let removed = self.docker.remove_image(reference, Some(options), None).await;
        removed.map(drop).map_err(|e| failed(&format!("remove the image {reference}"), &e))
    }

    /// Ports that an image exposes, such as `80/tcp`; `None` when the engine does not have the image.
    pub(crate) async fn exposed_ports(&self, image: &str) -> Result<Option<Vec<String>>> {
        match self.docker.inspect_image(image).await {
            Ok(inspected) => Ok(Some(inspected.config.and_then(|config| config.exposed_ports).unwrap_or_default())),
            Err(e) if status(&e) == Some(404) => Ok(None),
            Err(e) => Err(failed(&format!("look at the image {image}"), &e)),
        }
    }
}

/// The image's one layer: the binary, a directory for its socket, and one for anybody's temporary files.
fn layer(binary: &[u8]) -> io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::with_capacity(binary.len() + 8192));
    let mut add = |path: &str, kind: tar::EntryType, mode: u32, data: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(data.len() as u64);
        header.set_mtime(0);
        tar.append_data(&mut header, path, data)
    };
    add("run/", tar::EntryType::Directory, 0o755, &[])?;
    add("run/tp/", tar::EntryType::Directory, 0o755, &[])?;
    add("tmp/", tar::EntryType::Directory, 0o1777, &[])?;
    add("tp", tar::EntryType::Regular, 0o755, binary)?;
    tar.into_inner()
}

/// Checks that `binary` is an ELF program without an interpreter (System V ABI, chapters 4 and 5): the image has no
/// dynamic loader.
fn check_static(binary: &[u8]) -> Result<(), &'static str> {
    const CLASS_64: u8 = 2;
    const LITTLE_ENDIAN: u8 = 1;
    const PT_INTERP: u32 = 3;
    let header = binary.first_chunk::<64>().filter(|header| header.starts_with(b"\x7fELF"));
    let header = header.ok_or("it is no Linux program")?;
    if header[4] != CLASS_64 || header[5] != LITTLE_ENDIAN {
        return Err("it is no 64-bit little-endian program");
    }
    let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]) as usize;
    let start =
        usize::try_from(u64::from_le_bytes(*header[0x20..].first_chunk().expect("64 bytes"))).unwrap_or(usize::MAX);
    let (size, count) = (u16_at(0x36), u16_at(0x38));
    for index in 0..count {
        let at = start.saturating_add(index * size);
        let kind = binary.get(at..).and_then(|rest| rest.first_chunk()).ok_or("its program headers are cut off")?;
        if u32::from_le_bytes(*kind) == PT_INTERP {
            return Err("it is linked dynamically");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_holds_the_program_and_two_directories() {
        let bytes = layer(b"program").unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let entries: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                (entry.path().unwrap().display().to_string(), header.mode().unwrap(), header.size().unwrap())
            })
            .collect();
        assert_eq!(
            entries,
            [
                ("run/".to_owned(), 0o755, 0),
                ("run/tp/".to_owned(), 0o755, 0),
                ("tmp/".to_owned(), 0o1777, 0),
                ("tp".to_owned(), 0o755, 7)
            ]
        );
    }

    #[test]
    fn only_static_programs_pass() {
        assert_eq!(check_static(b"#!/bin/sh\n"), Err("it is no Linux program"));
        let mut elf = vec![0; 64 + 2 * 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[0x20] = 64;
        elf[0x36] = 56;
        elf[0x38] = 2;
        assert_eq!(check_static(&elf), Ok(()));
        elf[64 + 56] = 3;
        assert_eq!(check_static(&elf), Err("it is linked dynamically"));
        elf[0x38] = 3;
        elf[64 + 56] = 1;
        assert_eq!(check_static(&elf), Err("its program headers are cut off"));
    }
}
