//! What the node plugin and the fuse-host say to each other: one question and one answer a connection, a line of JSON each. The two may be of
//! different versions for a long time: questions are only added, unknown fields are ignored.

use crate::attach::{Attached, Request};
use crate::fault::{Fault, Kind, Outcome};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use uuid::Uuid;

/// Longest line, bytes: a thousand devices and then some.
const MAX_LINE: u64 = 1 << 20;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Question {
    /// Attach.
    Attach(Request),
    /// Detach.
    Detach(Uuid),
    /// Take over the volume's size.
    Resize(Uuid),
    /// Fail whatever waits or comes.
    GiveUp(Uuid),
    /// Everything that is attached.
    List,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// Done.
    Done,
    /// A device.
    Attached(Attached),
    /// All devices.
    All(Vec<Attached>),
    /// Not done.
    Failed {
        /// A word for programs.
        kind: Word,
        /// A sentence for people.
        text: String,
    },
}

/// Kinds of errors between the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Word {
    /// No such volume.
    NotFound,
    /// In use.
    InUse,
    /// Sheep cannot do it now.
    Unavailable,
    /// Anything else.
    #[serde(other)]
    Internal,
}

impl Answer {
    /// Of an operation.
    pub fn failed(f: Fault) -> Self {
        let kind = match f.kind {
            Kind::NotFound => Word::NotFound,
            Kind::Precondition | Kind::Aborted => Word::InUse,
            Kind::Unavailable => Word::Unavailable,
            _ => Word::Internal,
        };
        Self::Failed { kind, text: f.text }
    }
    /// What it means.
    pub fn into_result(self) -> Outcome<Self> {
        let Self::Failed { kind, text } = self else { return Ok(self) };
        let kind = match kind {
            Word::NotFound => Kind::NotFound,
            Word::InUse => Kind::Precondition,
            Word::Unavailable => Kind::Unavailable,
            Word::Internal => Kind::Internal,
        };
        Err(Fault::new(kind, text))
    }
    /// An answer that the question cannot have.
    pub fn odd(&self) -> Fault {
        Fault::internal(format!("the fuse-host answered {self:?}: is it of another version?"))
    }
}

/// Send a line.
async fn say<T: Serialize>(stream: &mut UnixStream, what: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    stream.write_all(&line).await
}

/// Read a line.
async fn hear<T: for<'a> Deserialize<'a>>(stream: &mut UnixStream) -> io::Result<T> {
    let mut line = Vec::new();
    BufReader::new(stream.take(MAX_LINE)).read_until(b'\n', &mut line).await?;
    if line.last() != Some(&b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&line)?)
}

/// The plugin's side.
pub async fn ask(socket: &Path, question: &Question) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket).await?;
    say(&mut stream, question).await?;
    hear(&mut stream).await
}

/// The host's side: one connection.
pub async fn answer<F: Future<Output = Answer>>(
    mut stream: UnixStream,
    how: impl FnOnce(Question) -> F,
) -> io::Result<()> {
    let question = hear(&mut stream).await?;
    let answer = how(question).await;
    say(&mut stream, &answer).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_question_and_its_answer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let r = Request { volume: Uuid::nil(), attachment: 7, export: "v#7".into(), read_only: false };
        let want = Question::Attach(r.clone());
        let serve = async {
            let (stream, _) = listener.accept().await.unwrap();
            answer(stream, async |q| {
                assert_eq!(q, Question::Attach(r));
                Answer::failed(Fault::new(Kind::Unavailable, "away"))
            })
            .await
            .unwrap();
        };
        let (answer, ()) = tokio::join!(ask(&path, &want), serve);
        assert_eq!(answer.unwrap().into_result().unwrap_err(), Fault::new(Kind::Unavailable, "away"));
    }

    #[test]
    fn the_lines_are_what_other_versions_read() {
        let line = |q: &Question| serde_json::to_string(q).unwrap();
        let id = Uuid::nil();
        assert_eq!(line(&Question::List), "\"list\"");
        assert_eq!(line(&Question::Detach(id)), format!("{{\"detach\":\"{id}\"}}"));
        let odd: Answer = serde_json::from_str(r#"{"failed":{"kind":"melted","text":"x"}}"#).unwrap();
        assert_eq!(odd.into_result().unwrap_err().kind, Kind::Internal);
    }
}
