//! Range, in all its forms but the streamed one. Puts, deletions, transactions and compactions are
//! refused.

use crate::limits::API_ANSWER_BYTES;
use async_trait::async_trait;
use etcd_client::proto::{
    PbCompactionRequest, PbCompactionResponse, PbDeleteRequest, PbDeleteResponse, PbKvService, PbPutRequest,
    PbPutResponse, PbRangeRequest, PbRangeResponse, PbRangeStreamResponse, PbTxnRequest, PbTxnResponse,
};
use futures::stream::BoxStream;
use tonic::{Request, Response, Status};

use super::super::mvcc::inspect::{Order, OrderBy, Select, SelectError};
use super::{Api, compacted, denied, header, key_range, key_value, unanswered};

#[async_trait]
impl PbKvService for Api {
    type RangeStreamStream = BoxStream<'static, Result<PbRangeStreamResponse, Status>>;

    async fn range(&self, request: Request<PbRangeRequest>) -> Result<Response<PbRangeResponse>, Status> {
        let select = select(request.into_inner())?;
        // There is one copy, so what is local is what is current.
        let selected = self.read(|state, _| state.mvcc.select(&select)).await?.map_err(|why| match why {
            SelectError::Compacted => compacted(),
            SelectError::Future => {
                Status::out_of_range("etcdserver: mvcc: required revision is a future revision")
            }
            SelectError::TooLarge => Status::resource_exhausted(format!(
                "the answer is larger than max ({API_ANSWER_BYTES} bytes): ask for fewer keys with a limit, or for keys only"
            )),
        })?;
        Ok(Response::new(PbRangeResponse {
            header: header(selected.revision),
            kvs: selected.kvs.into_iter().map(key_value).collect(),
            more: selected.more,
            count: i64::try_from(selected.count).unwrap_or(i64::MAX),
        }))
    }

    async fn range_stream(
        &self,
        _: Request<PbRangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(unanswered("ranges as streams"))
    }

    async fn put(&self, _: Request<PbPutRequest>) -> Result<Response<PbPutResponse>, Status> {
        Err(denied())
    }

    async fn delete_range(&self, _: Request<PbDeleteRequest>) -> Result<Response<PbDeleteResponse>, Status> {
        Err(denied())
    }

    async fn txn(&self, _: Request<PbTxnRequest>) -> Result<Response<PbTxnResponse>, Status> {
        Err(denied())
    }

    async fn compact(
        &self,
        _: Request<PbCompactionRequest>,
    ) -> Result<Response<PbCompactionResponse>, Status> {
        Err(denied())
    }
}

/// What a request means.
fn select(request: PbRangeRequest) -> Result<Select, Status> {
    if request.key.is_empty() {
        return Err(Status::invalid_argument("etcdserver: key is not provided"));
    }
    Ok(Select {
        keys: key_range(request.key, request.range_end),
        at: (request.revision > 0).then_some(request.revision),
        limit: usize::try_from(request.limit).unwrap_or(0),
        keys_only: request.keys_only,
        count_only: request.count_only,
        order: order(request.sort_order, request.sort_target)?,
        mod_revisions: (request.min_mod_revision, request.max_mod_revision),
        create_revisions: (request.min_create_revision, request.max_create_revision),
        max_bytes: API_ANSWER_BYTES,
    })
}

/// An order, by etcd's numbers. Keys ascend without being sorted; everything else does if nothing
/// is said.
fn order(order: i32, target: i32) -> Result<Option<Order>, Status> {
    let wrong = || Status::invalid_argument("etcdserver: invalid sort option");
    let by = match target {
        0 => OrderBy::Key,
        1 => OrderBy::Version,
        2 => OrderBy::CreateRevision,
        3 => OrderBy::ModRevision,
        4 => OrderBy::Value,
        _ => return Err(wrong()),
    };
    let descending = match order {
        0 | 1 => false,
        2 => true,
        _ => return Err(wrong()),
    };
    Ok((descending || by != OrderBy::Key).then_some(Order { by, descending }))
}
