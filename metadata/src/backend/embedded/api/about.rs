//! What there is beside keys: leases, the only member, how it is.

use async_trait::async_trait;
use etcd_client::proto::{
    PbAlarmRequest, PbAlarmResponse, PbClusterService, PbDefragmentRequest, PbDefragmentResponse,
    PbDowngradeRequest, PbDowngradeResponse, PbHashKvRequest, PbHashKvResponse, PbHashRequest,
    PbHashResponse, PbLeaseGrantRequest, PbLeaseGrantResponse, PbLeaseKeepAliveRequest,
    PbLeaseKeepAliveResponse, PbLeaseLeasesRequest, PbLeaseLeasesResponse, PbLeaseRevokeRequest,
    PbLeaseRevokeResponse, PbLeaseService, PbLeaseStatus, PbLeaseTimeToLiveRequest,
    PbLeaseTimeToLiveResponse, PbMaintenanceService, PbMember, PbMemberAddRequest, PbMemberAddResponse,
    PbMemberListRequest, PbMemberListResponse, PbMemberPromoteRequest, PbMemberPromoteResponse,
    PbMemberRemoveRequest, PbMemberRemoveResponse, PbMemberUpdateRequest, PbMemberUpdateResponse,
    PbMoveLeaderRequest, PbMoveLeaderResponse, PbSnapshotRequest, PbSnapshotResponse, PbStatusRequest,
    PbStatusResponse,
};
use futures::stream::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Api, MEMBER_ID, MEMBER_NAME, VERSION, denied, header, unanswered};

/// The action of an alarm request that only looks.
const ALARM_GET: i32 = 0;

#[async_trait]
impl PbLeaseService for Api {
    type LeaseKeepAliveStream = BoxStream<'static, Result<PbLeaseKeepAliveResponse, Status>>;

    async fn lease_time_to_live(
        &self,
        request: Request<PbLeaseTimeToLiveRequest>,
    ) -> Result<Response<PbLeaseTimeToLiveResponse>, Status> {
        let PbLeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let response = self.read(|state, now| {
            let header = header(state.mvcc.revision());
            let (Some(granted_ttl), Some(ends_at)) = (state.mvcc.lease_ttl_s(id), state.deadlines.of(id))
            else {
                return PbLeaseTimeToLiveResponse { header, id, ttl: -1, ..Default::default() };
            };
            let left = ends_at.saturating_duration_since(now).as_secs();
            let attached = state.mvcc.lease_keys(id).filter(|_| keys).map(|key| key.to_vec());
            PbLeaseTimeToLiveResponse {
                header,
                id,
                ttl: i64::try_from(left).unwrap_or(i64::MAX),
                granted_ttl,
                keys: attached.collect(),
            }
        });
        Ok(Response::new(response.await?))
    }

    async fn lease_leases(
        &self,
        _: Request<PbLeaseLeasesRequest>,
    ) -> Result<Response<PbLeaseLeasesResponse>, Status> {
        let response = self.read(|state, _| PbLeaseLeasesResponse {
            header: header(state.mvcc.revision()),
            leases: state.mvcc.leases().map(|(id, _)| PbLeaseStatus { id }).collect(),
        });
        Ok(Response::new(response.await?))
    }

    async fn lease_grant(
        &self,
        _: Request<PbLeaseGrantRequest>,
    ) -> Result<Response<PbLeaseGrantResponse>, Status> {
        Err(denied())
    }

    async fn lease_revoke(
        &self,
        _: Request<PbLeaseRevokeRequest>,
    ) -> Result<Response<PbLeaseRevokeResponse>, Status> {
        Err(denied())
    }

    async fn lease_keep_alive(
        &self,
        _: Request<Streaming<PbLeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        Err(denied())
    }
}

#[async_trait]
impl PbClusterService for Api {
    async fn member_list(
        &self,
        _: Request<PbMemberListRequest>,
    ) -> Result<Response<PbMemberListResponse>, Status> {
        let member = PbMember {
            id: MEMBER_ID,
            name: MEMBER_NAME.to_owned(),
            client_ur_ls: vec![self.client_url.to_string()],
            ..PbMember::default()
        };
        Ok(Response::new(PbMemberListResponse { header: self.header().await?, members: vec![member] }))
    }

    async fn member_add(
        &self,
        _: Request<PbMemberAddRequest>,
    ) -> Result<Response<PbMemberAddResponse>, Status> {
        Err(denied())
    }

    async fn member_remove(
        &self,
        _: Request<PbMemberRemoveRequest>,
    ) -> Result<Response<PbMemberRemoveResponse>, Status> {
        Err(denied())
    }

    async fn member_update(
        &self,
        _: Request<PbMemberUpdateRequest>,
    ) -> Result<Response<PbMemberUpdateResponse>, Status> {
        Err(denied())
    }

    async fn member_promote(
        &self,
        _: Request<PbMemberPromoteRequest>,
    ) -> Result<Response<PbMemberPromoteResponse>, Status> {
        Err(denied())
    }
}

#[async_trait]
impl PbMaintenanceService for Api {
    type SnapshotStream = BoxStream<'static, Result<PbSnapshotResponse, Status>>;

    /// Sizes are those of keys and values in memory, of all versions and of the newest. There is no
    /// quota.
    async fn status(&self, _: Request<PbStatusRequest>) -> Result<Response<PbStatusResponse>, Status> {
        let (revision, sizes) = self.read(|state, _| (state.mvcc.revision(), state.mvcc.sizes())).await?;
        Ok(Response::new(PbStatusResponse {
            header: header(revision),
            version: VERSION.to_owned(),
            db_size: i64::try_from(sizes.all).unwrap_or(i64::MAX),
            db_size_in_use: i64::try_from(sizes.live).unwrap_or(i64::MAX),
            leader: MEMBER_ID,
            raft_index: revision.unsigned_abs(),
            raft_applied_index: revision.unsigned_abs(),
            raft_term: 1,
            ..PbStatusResponse::default()
        }))
    }

    async fn alarm(&self, request: Request<PbAlarmRequest>) -> Result<Response<PbAlarmResponse>, Status> {
        if request.into_inner().action != ALARM_GET {
            return Err(denied());
        }
        // A store that can not go on answers nothing, and it knows no other trouble.
        Ok(Response::new(PbAlarmResponse { header: self.header().await?, alarms: Vec::new() }))
    }

    async fn defragment(
        &self,
        _: Request<PbDefragmentRequest>,
    ) -> Result<Response<PbDefragmentResponse>, Status> {
        Err(denied())
    }

    async fn move_leader(
        &self,
        _: Request<PbMoveLeaderRequest>,
    ) -> Result<Response<PbMoveLeaderResponse>, Status> {
        Err(denied())
    }

    async fn downgrade(
        &self,
        _: Request<PbDowngradeRequest>,
    ) -> Result<Response<PbDowngradeResponse>, Status> {
        Err(denied())
    }

    async fn hash(&self, _: Request<PbHashRequest>) -> Result<Response<PbHashResponse>, Status> {
        Err(unanswered("hashes"))
    }

    async fn hash_kv(&self, _: Request<PbHashKvRequest>) -> Result<Response<PbHashKvResponse>, Status> {
        Err(unanswered("hashes"))
    }

    async fn snapshot(
        &self,
        _: Request<PbSnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(unanswered("snapshots; copy the journal while the broker does not run"))
    }
}
