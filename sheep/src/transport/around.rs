//! A connection that may come directly, or through a third sheep: which of the two is taken. Why: `docs/design/relay.md`.

use std::time::Duration;

/// A direct connection that takes longer gets company.
pub const HEAD_START: Duration = Duration::from_millis(500);
/// How long one third sheep gets.
pub const EACH: Duration = Duration::from_millis(1_500);
/// So many third sheep are asked per try.
pub const MOST: usize = 3;
/// Between two looks whether the direct way is open again.
pub const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The direct way, or after its head start whichever is there first.
///
/// # Errors
///
/// Those of the direct way. One that is `refused` ends it at once: the peer's process is not there, and nobody can help.
pub async fn first<T, E>(
    direct: impl Future<Output = Result<T, E>>,
    around: impl Future<Output = Option<T>>,
    refused: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let around = async {
        tokio::time::sleep(HEAD_START).await;
        around.await
    };
    tokio::pin!(direct, around);
    let (mut failed, mut nobody) = (None, false);
    loop {
        tokio::select! {
            biased;
            r = &mut direct, if failed.is_none() => match r {
                Ok(there) => return Ok(there),
                Err(e) if refused(&e) => return Err(e),
                Err(e) => failed = Some(e),
            },
            r = &mut around, if !nobody => match r {
                Some(there) => return Ok(there),
                None => nobody = true,
            },
        }
        if nobody && let Some(e) = failed {
            return Err(e);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, ready};
    use tokio::time::{Instant, sleep};

    async fn after<T>(ms: u64, then: T) -> T {
        sleep(Duration::from_millis(ms)).await;
        then
    }

    #[tokio::test(start_paused = true)]
    async fn the_direct_way_has_a_head_start_and_the_last_word() {
        type R = Result<u8, &'static str>;
        let dead = |e: &&str| *e == "refused";
        let begin = Instant::now();
        assert_eq!(first(after(400, R::Ok(1)), ready(Some(2)), dead).await, Ok(1));
        assert_eq!(first(after(900, R::Ok(1)), ready(Some(2)), dead).await, Ok(2));
        assert_eq!(first(after(900, R::Ok(1)), after(900, Some(2)), dead).await, Ok(1));
        assert_eq!(first(pending::<R>(), ready(Some(2)), dead).await, Ok(2));
        assert_eq!(begin.elapsed().as_millis(), 400 + 500 + 900 + 500);
        // Nobody helps: what the direct way says, when it says it.
        assert_eq!(first(after(900, R::Err("late")), ready(None), dead).await, Err("late"));
        assert_eq!(first(after(100, R::Err("no route")), after(700, Some(2)), dead).await, Ok(2));
        assert_eq!(first(after(100, R::Err("no route")), ready(None), dead).await, Err("no route"));
        // Not there: nobody else is asked.
        let begin = Instant::now();
        assert_eq!(first(after(100, R::Err("refused")), ready(Some(2)), dead).await, Err("refused"));
        assert_eq!(begin.elapsed().as_millis(), 100);
    }
}
