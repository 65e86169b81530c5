//! Timers that go by the simulated clock where there is one, and by tokio's elsewhere.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::inject;
use crate::time::now;

/// As tokio's.
pub(crate) struct Sleep {
    until: Instant,
    inner: Inner,
}

enum Inner {
    Tokio(Pin<Box<tokio::time::Sleep>>),
    /// Its number among the timers that wait.
    Simulated(u64),
}

/// The time was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Elapsed;

impl Sleep {
    /// Waits until then instead.
    pub(crate) fn reset(self: Pin<&mut Self>, until: Instant) {
        let this = self.get_mut();
        match &mut this.inner {
            Inner::Tokio(sleep) => sleep.as_mut().reset(until),
            Inner::Simulated(number) => inject::forget_timer(this.until.into(), *number),
        }
        this.until = until;
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        match &mut this.inner {
            Inner::Tokio(sleep) => sleep.as_mut().poll(context),
            Inner::Simulated(_) if this.until <= now() => Poll::Ready(()),
            Inner::Simulated(number) => {
                inject::set_timer(this.until.into(), *number, context.waker());
                Poll::Pending
            }
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Inner::Simulated(number) = self.inner {
            inject::forget_timer(self.until.into(), number);
        }
    }
}

pub(crate) fn sleep_until(until: Instant) -> Sleep {
    let inner = match inject::timer() {
        Some(number) => Inner::Simulated(number),
        None => Inner::Tokio(Box::pin(tokio::time::sleep_until(until))),
    };
    Sleep { until, inner }
}

pub(crate) fn sleep(time: Duration) -> Sleep {
    sleep_until(now() + time)
}

pub(crate) async fn timeout_at<F: Future>(until: Instant, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    let sleep = sleep_until(until);
    tokio::select! {
        biased;
        output = &mut future => Ok(output),
        () = sleep => Err(Elapsed),
    }
}

pub(crate) fn timeout<F: Future>(
    time: Duration,
    future: F,
) -> impl Future<Output = Result<F::Output, Elapsed>> {
    timeout_at(now() + time, future)
}
