//! Between volumes and repositories: what `dog vdi backup`, `dog vdi restore` and `dog cluster snapshot` have in common.

pub mod chunks;
mod cut;
pub mod lazy;
pub mod load;
pub mod mark;
pub mod point;
pub mod save;

use crate::context::Context;
use crate::failure::{Failure, code};
use sheepdog_backup::seal::{LEVEL, LEVELS};
use sheepdog_backup::{Error, Lock, Manifest, Place, Repository, place};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Which repository.
#[derive(clap::Args, Debug, Clone)]
pub struct At {
    /// Repository: a directory, s3://BUCKET/PREFIX, one file whose name ends in .sheepdog, or - for a pipe
    pub repository: String,
    /// File with the password of an encrypted repository
    #[arg(long, value_name = "FILE", env = "DOG_BACKUP_PASSWORD_FILE")]
    pub password_file: Option<PathBuf>,
}

/// How contents are stored.
#[derive(clap::Args, Debug, Clone)]
pub struct Packing {
    /// 1 (fast) to 19 (small): of what is stored now. 0 leaves it as it is: faster where CPUs are scarce and there is room
    #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(i32).range(0..=i64::from(LEVELS)), default_value_t = LEVEL)]
    compression: i32,
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        let code = if matches!(e, Error::NotFound(_)) { 5 } else { code::FAILED };
        let f = Self::new(code, e.to_string());
        match e {
            Error::Damaged { .. } | Error::Missing(_) => {
                f.hint("dog backup verify names everything that is damaged, dog vdi restore --keep-going leaves it out")
            }
            _ => f,
        }
    }
}

impl At {
    fn password(&self) -> Result<Option<Vec<u8>>, Failure> {
        let Some(file) = &self.password_file else { return Ok(None) };
        let text = std::fs::read(file).map_err(|e| Failure::io(file.display(), &e))?;
        let text = text.strip_suffix(b"\n").unwrap_or(&text).to_vec();
        if text.is_empty() {
            return Err(Failure::usage(format!("{} is empty: write a password into it", file.display())));
        }
        Ok(Some(text))
    }

    fn is_file(&self) -> bool {
        self.repository == "-" || self.repository.ends_with(".sheepdog")
    }

    fn place(&self) -> Result<Place, Failure> {
        if self.repository.starts_with("s3://") {
            return Ok(Place::s3(&self.repository)?);
        }
        Ok(Place::dir(Path::new(&self.repository)))
    }

    /// To read from.
    pub async fn open(&self) -> Result<Repository, Failure> {
        let place = match (self.is_file(), self.repository.as_str()) {
            (false, _) => self.place()?,
            (true, "-") => {
                let spooled = tokio::task::spawn_blocking(|| place::spool(std::io::stdin().lock())).await;
                let file = spooled.map_err(|e| Failure::new(code::FAILED, e.to_string()))?;
                Place::reader(file.map_err(|e| Failure::io("standard input", &e))?)?
            }
            (true, path) => Place::reader(File::open(path).map_err(|e| Failure::io(path, &e))?)?,
        };
        let password = self.password()?;
        let found = Repository::open(place, password.as_deref()).await?;
        found.ok_or_else(|| Failure::new(5, format!("there is no repository at {}", self.repository)))
    }

    /// To back up into: made where nothing is, with the password that is given.
    pub async fn open_or_create(&self, chunk: u32, packing: &Packing) -> Result<Repository, Failure> {
        Ok(self.found_or_made(chunk).await?.compressing(packing.compression))
    }

    async fn found_or_made(&self, chunk: u32) -> Result<Repository, Failure> {
        let password = self.password()?;
        let place = if self.is_file() {
            let out: Box<dyn std::io::Write + Send> = match self.repository.as_str() {
                "-" => Box::new(std::io::stdout()),
                path => Box::new(Synced(File::create_new(path).map_err(|e| {
                    let f = Failure::io(path, &e);
                    if e.kind() == std::io::ErrorKind::AlreadyExists {
                        Failure { code: 3, ..f }.hint("one file holds one backup: name another one")
                    } else {
                        f
                    }
                })?)),
            };
            Place::writer(out)
        } else {
            self.place()?
        };
        if !place.is_file()
            && let Some(found) = Repository::open(place.clone(), password.as_deref()).await?
        {
            if password.is_some() && !found.is_encrypted() {
                return Err(Failure::usage(
                    "the repository is not encrypted: leave --password-file out, or use another one",
                ));
            }
            return Ok(found);
        }
        Ok(Repository::create(place, password.as_deref(), chunk).await?)
    }
}

/// The one that is meant, or the only one.
pub fn pick<'a>(all: &'a [Manifest], meant: Option<&str>) -> Result<&'a Manifest, Failure> {
    match (meant, all) {
        (Some(b), _) => Ok(Repository::find(all, b)?),
        (None, [only]) => Ok(only),
        (None, _) => Err(Failure::usage("the repository has several backups: say which")
            .hint("dog backup list names them")),
    }
}

/// Keeps a prune away. Who may only read a repository goes on without, and says so.
pub async fn lock_for_reading(ctx: &Context, repository: &Repository) -> Result<Option<Lock>, Failure> {
    match repository.lock("restore").await {
        Ok(lock) => Ok(Some(lock)),
        Err(e @ Error::Place { .. }) => {
            ctx.remark(&format!("nobody keeps a prune away meanwhile: {e}"));
            Ok(None)
        }
        Err(e) => Err(e.into()),
    }
}

/// Backups that can be read; the others are told.
pub async fn readable(repository: &Repository) -> Result<Vec<Manifest>, Failure> {
    let (all, bad) = repository.backups().await?;
    for e in bad {
        eprintln!("dog: {e}");
    }
    Ok(all)
}

/// What is flushed is on stable storage.
struct Synced(File);

impl std::io::Write for Synced {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0.write(buf)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.0.sync_all()
    }
}

/// `20261122T133000123Z`: in the order of time, and another one each time.
pub fn stamp(ms: u64) -> String {
    let mut text: String = crate::output::timestamp(ms).chars().filter(char::is_ascii_alphanumeric).collect();
    text.pop();
    format!("{text}{:03}Z", ms % 1000)
}

/// Is it one of those?
pub fn is_stamp(text: &str) -> bool {
    let digits = |t: &str, n| t.len() == n && t.bytes().all(|b| b.is_ascii_digit());
    let parts = text.strip_suffix('Z').and_then(|t| t.split_once('T'));
    parts.is_some_and(|(day, time)| digits(day, 8) && digits(time, 9))
}

#[cfg(test)]
mod tests {
    #[test]
    fn stamps_are_in_order() {
        assert_eq!(super::stamp(1_795_354_200_007), "20261122T133000007Z");
        assert!(super::stamp(999) < super::stamp(1_000));
        assert!(super::is_stamp(&super::stamp(1_795_354_200_007)));
        for not in ["", "monday", "20261122T133000007", "20261122T13300000Z", "2026-11-22T133000007Z"] {
            assert!(!super::is_stamp(not), "{not}");
        }
    }
}
